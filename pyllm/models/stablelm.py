"""StableLM (model_type stablelm): Llama with layer norms and rotary positions on a part of each head.

q, k and v may have biases, each query and key head a norm of its own, and attention and feed-forward may run side by
side after one norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, NormSlice, Program
from ..program.recorder import Recorder
from ..program.tensors import Buffer
from .blocks import ACTIVATIONS, joined, matrix, norm, table, vector
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

# Frequencies that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's StableLmConfig, the fields that shape the network. rope: from rope_parameters and companions."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_act: ActivationName
    layer_norm_eps: float
    use_qkv_bias: bool
    qk_layernorm: bool
    use_parallel_residual: bool
    tie_word_embeddings: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        positions = fields.integer("max_position_embeddings", 4096)
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=positions,
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=fields.kv_heads("num_key_value_heads", "num_attention_heads", heads),
            hidden_act=fields.choice("hidden_act", "silu", ACTIVATIONS),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
            use_qkv_bias=fields.flag("use_qkv_bias", False),
            qk_layernorm=fields.flag("qk_layernorm", False),
            use_parallel_residual=fields.flag("use_parallel_residual", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=rope_from_fields(fields, head_dim, positions, partial=0.25),
        )
        fields.finish()
        return result

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def canonical(name: str) -> str:
    """StableLmForCausalLM puts `model.` before what StableLmModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, kv = c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim
    r = Recorder("stablelm", vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens = table("embed_tokens", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn, mlp = f"layers.{i}", f"layers.{i}.self_attn", f"layers.{i}.mlp"
            qkv = [(f"{attn}.q_proj", width), (f"{attn}.k_proj", kv), (f"{attn}.v_proj", kv)]
            gate_up = [(f"{mlp}.gate_proj", ffn), (f"{mlp}.up_proj", ffn)]
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.input_layernorm", width), c.layer_norm_eps)
            a = r.linear("qkv", h, joined(f"{attn}.qkv_proj", qkv, width, bias=c.use_qkv_bias))
            a = _qk_norm(r, a, attn, c) if c.qk_layernorm else a
            a = r.attention(
                "attn",
                a,
                num_heads=c.num_attention_heads,
                num_kv_heads=c.num_key_value_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
                rope=rope,
            )
            x = r.linear("attn_out", a, matrix(f"{attn}.o_proj", width, width), residual=x)
            if not c.use_parallel_residual:
                h = r.layer_norm("ffn_norm", x, *norm(f"{p}.post_attention_layernorm", width), c.layer_norm_eps)
            h = r.linear("ffn_gate_up", h, joined(f"{mlp}.gate_up_proj", gate_up, width, gated=True), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=x)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("norm", width), c.layer_norm_eps))
    logits = r.linear("logits", x, head)
    tied = (("embed_tokens.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _qk_norm(r: Recorder, qkv: Buffer, attn: str, c: Config) -> Buffer:
    """A norm without bias for each query head and each key head."""
    size = c.head_dim
    slices = [
        NormSlice(start + head * size, size, 1, vector(f"{attn}.{part}_layernorm.norms.{head}.weight", size))
        for part, start, heads in (("q", 0, c.num_attention_heads), ("k", c.hidden_size, c.num_key_value_heads))
        for head in range(heads)
    ]
    return r.head_norm("qk_norm", qkv, "layer", slices, c.layer_norm_eps)
