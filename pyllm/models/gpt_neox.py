"""GPT-NeoX and Pythia (model_type gpt_neox): attention and feed-forward side by side, each with a norm of its own.

Rotary positions on a part of each head, qkv fused head by head, an own head. use_parallel_residual false: one after the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, grouped_qkv, matrix, norm, table
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}  # transformers 4 | 5
# Causal masks and frequencies that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (
    r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.(inv_freq|cos_cached|sin_cached))",
    r"rotary_emb\.inv_freq",
    r"(score|classifier|qa_outputs)\..*",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's GPTNeoXConfig, the fields that shape the network. rope: from rope_parameters or rotary_pct."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: ActivationName
    layer_norm_eps: float
    use_parallel_residual: bool
    attention_bias: bool
    tie_word_embeddings: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, NAMES)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        positions = fields.integer("max_position_embeddings", 2048)
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=positions,
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            hidden_act=fields.choice("hidden_act", "gelu", ACTIVATIONS),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
            use_parallel_residual=fields.flag("use_parallel_residual", True),
            attention_bias=fields.flag("attention_bias", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=rope_from_fields(fields, head_dim, positions, partial=0.25),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """GPTNeoXForCausalLM puts `gpt_neox.` before what GPTNeoXModel has without. Its head was `embed_out`, and is
    `lm_head` in transformers 5."""
    return "embed_out.weight" if name == "lm_head.weight" else name.removeprefix("gpt_neox.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads
    head_dim = width // heads
    r = Recorder("gpt_neox", vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens = table("embed_in", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("embed_out", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn = f"layers.{i}", f"layers.{i}.attention"
            qkv = grouped_qkv(f"{attn}.query_key_value", width, heads, heads, head_dim, bias=c.attention_bias)
            up = matrix(f"{p}.mlp.dense_h_to_4h", ffn, width, bias=True)
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.input_layernorm", width), c.layer_norm_eps)
            h = r.linear("qkv", h, qkv)
            h = r.attention(
                "attn",
                h,
                num_heads=heads,
                num_kv_heads=heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rope=rope,
            )
            y = r.linear("attn_out", h, matrix(f"{attn}.dense", width, width, bias=c.attention_bias), residual=x)
            x = x if c.use_parallel_residual else y
            h = r.layer_norm("ffn_norm", x, *norm(f"{p}.post_attention_layernorm", width), c.layer_norm_eps)
            h = r.linear("ffn_up", h, up, c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.dense_4h_to_h", width, ffn, bias=True), residual=y)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("final_layer_norm", width), c.layer_norm_eps))
    logits = r.linear("logits", x, head)
    tied = (("embed_in.weight", "embed_out.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
