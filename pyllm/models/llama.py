"""Llama and what differs from it by fields only: llama, mistral (sliding window), qwen2 (qkv bias, windows by layer).

RMSNorm before each block, rotary positions, grouped key/value heads, gated feed-forward, a tied or own head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, joined, matrix, table, vector
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

# Old checkpoints hold the rotary frequencies, which follow from the configuration.
IGNORED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
MAX_HEAD_DIM = 65536


@dataclass(frozen=True)
class Config:
    """Hugging Face's LlamaConfig, MistralConfig and Qwen2Config, the fields that shape the network.

    windows: keys each layer's queries see (0: all), from sliding_window and its companions. rope: from rope_parameters.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: ActivationName
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    windows: tuple[int, ...]
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        model_type = str(config["model_type"])
        layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        positions = fields.integer("max_position_embeddings")
        width = fields.integer("hidden_size")
        heads, kv_heads, head_dim = _heads(fields, width)
        is_llama = model_type == "llama"
        result = Config(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            hidden_act=fields.choice("hidden_act", "silu", ACTIVATIONS),
            max_position_embeddings=positions,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=is_llama and fields.flag("attention_bias", False),
            mlp_bias=is_llama and fields.flag("mlp_bias", False),
            windows=_windows(fields, model_type, layers),
            rope=rope_from_fields(fields, head_dim, positions),
        )
        fields.finish()
        return result

    @property
    def qkv_bias(self) -> bool:
        """Qwen2 always has biases in q, k and v, and never in the output projection."""
        return self.attention_bias or self.model_type == "qwen2"


def _heads(fields: Fields, width: int) -> tuple[int, int, int]:
    """Query heads, key/value heads and head width; `width`: hidden_size."""
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads, low=0 if not heads else 1)
    head_dim = fields.integer("head_dim", 0, low=0, high=MAX_HEAD_DIM)
    if heads and kv_heads and heads % kv_heads:
        fields.invalid(f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and {kv_heads}")
    if width and heads and not head_dim:
        if width % heads:
            fields.invalid(f"hidden_size must be a multiple of num_attention_heads, got {width} and {heads}")
        head_dim = width // heads
        if head_dim > MAX_HEAD_DIM:
            fields.invalid(f"heads may be {MAX_HEAD_DIM} wide, hidden_size / num_attention_heads is {head_dim}")
            head_dim = 0
    if head_dim % 2:
        fields.invalid(f"rotary positions need an even head_dim, got {head_dim}")
    return heads, kv_heads, head_dim


def _windows(fields: Fields, model_type: str, layers: int) -> tuple[int, ...]:
    """The sliding window of each layer; 0 where all keys are seen."""
    if model_type == "llama":
        return (0,) * layers
    window = fields.integer("sliding_window", 0, low=0)
    if model_type == "mistral":
        return (window,) * layers
    sliding = fields.flag("use_sliding_window", False)
    first = fields.integer("max_window_layers", 28, low=0)
    kinds = fields.raw("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if sliding and i >= first else "full_attention" for i in range(layers)]
    known = {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not known.issuperset(map(str, kinds)):
        fields.invalid(f"layer_types must be {layers} of full_attention and sliding_attention, got {kinds!r}")
        return ()
    if "sliding_attention" in kinds and not (window and sliding):
        fields.invalid(f"sliding layers need use_sliding_window and a sliding_window > 0, got {sliding} and {window}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def canonical(name: str) -> str:
    """LlamaForCausalLM puts `model.` before what LlamaModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn = c.hidden_size, c.intermediate_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens = table("embed_tokens", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i, window in enumerate(c.windows):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            qkv = [(f"{attn}.q_proj", q), (f"{attn}.k_proj", kv), (f"{attn}.v_proj", kv)]
            gate_up = [(f"{mlp}.gate_proj", ffn), (f"{mlp}.up_proj", ffn)]
            h = r.rms_norm("attn_norm", x, vector(f"layers.{i}.input_layernorm.weight", width), c.rms_norm_eps)
            h = r.linear("qkv", h, joined(f"{attn}.qkv_proj", qkv, width, bias=c.qkv_bias))
            h = r.attention(
                "attn",
                h,
                num_heads=c.num_attention_heads,
                num_kv_heads=c.num_key_value_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
                rope=rope,
                window=window,
            )
            x = r.linear("attn_out", h, matrix(f"{attn}.o_proj", width, q, bias=c.attention_bias), residual=x)
            h = r.rms_norm("ffn_norm", x, vector(f"layers.{i}.post_attention_layernorm.weight", width), c.rms_norm_eps)
            weight = joined(f"{mlp}.gate_up_proj", gate_up, width, bias=c.mlp_bias, gated=True)
            h = r.linear("ffn_gate_up", h, weight, c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn, bias=c.mlp_bias), residual=x)
    x = r.rms_norm("norm", r.select("last", x), vector("norm.weight", width), c.rms_norm_eps)
    logits = r.linear("logits", x, head)
    tied = (("embed_tokens.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
