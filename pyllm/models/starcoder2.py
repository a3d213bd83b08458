"""StarCoder2 (model_type starcoder2): Llama's attention, with biases and a sliding window, between layer norms; a plain
feed-forward and a tied head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, joined, matrix, norm, table
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

# Frequencies that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's Starcoder2Config, the fields that shape the network. sliding_window 0: none."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_act: ActivationName
    norm_epsilon: float
    use_bias: bool
    sliding_window: int
    tie_word_embeddings: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        positions = fields.integer("max_position_embeddings")
        fields.choice("mlp_type", "default", {"default": "plain"})
        fields.choice("norm_type", "layer_norm", {"layer_norm": "layer"})
        if fields.integer("head_dim", head_dim, low=0) != head_dim:
            fields.unsupported("head_dim other than hidden_size / num_attention_heads")
        if head_dim % 2:
            fields.invalid(f"rotary positions need an even hidden_size / num_attention_heads, got {head_dim}")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=positions,
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=fields.kv_heads("num_key_value_heads", "num_attention_heads", heads),
            hidden_act=fields.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS),
            norm_epsilon=fields.number("norm_epsilon", 1e-5),
            use_bias=fields.flag("use_bias", True),
            sliding_window=fields.integer("sliding_window", 0, low=0),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            rope=rope_from_fields(fields, head_dim, positions),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """Starcoder2ForCausalLM puts `model.` before what Starcoder2Model has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, bias = c.hidden_size, c.intermediate_size, c.use_bias
    head_dim = width // c.num_attention_heads
    kv = c.num_key_value_heads * head_dim
    r = Recorder("starcoder2", vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens = table("embed_tokens", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn = f"layers.{i}", f"layers.{i}.self_attn"
            qkv = [(f"{attn}.q_proj", width), (f"{attn}.k_proj", kv), (f"{attn}.v_proj", kv)]
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.input_layernorm", width), c.norm_epsilon)
            h = r.linear("qkv", h, joined(f"{attn}.qkv_proj", qkv, width, bias=bias))
            h = r.attention(
                "attn",
                h,
                num_heads=c.num_attention_heads,
                num_kv_heads=c.num_key_value_heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rope=rope,
                window=c.sliding_window,
            )
            x = r.linear("attn_out", h, matrix(f"{attn}.o_proj", width, width, bias=bias), residual=x)
            h = r.layer_norm("ffn_norm", x, *norm(f"{p}.post_attention_layernorm", width), c.norm_epsilon)
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.c_fc", ffn, width, bias=bias), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.c_proj", width, ffn, bias=bias), residual=x)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("norm", width), c.norm_epsilon))
    logits = r.linear("logits", x, head)
    tied = (("embed_tokens.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
