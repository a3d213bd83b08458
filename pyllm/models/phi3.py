"""Phi-3, and Phi-4 (model_type phi3): Llama's network with one fused qkv, one fused gate and up, and a sliding window.

Rotary positions may turn a part of each head (Phi-4-mini), and may be "longrope": such a model carries as far as its
original_max_position_embeddings (rope.py says why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import Program
from ..program.recorder import Recorder
from .blocks import matrix, vector
from .decoder import IGNORED, DecoderConfig, decoder_fields, fused_gate_up
from .fields import Fields
from .rope import RopeParameters, rope_from_fields


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's Phi3Config, the fields that shape the network. sliding_window 0: there is none."""

    rms_norm_eps: float
    sliding_window: int
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        shared = decoder_fields(fields)
        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
            sliding_window=fields.integer("sliding_window", 0, low=0),
            rope=rope_from_fields(fields, shared["head_dim"], shared["max_position_embeddings"], partial=1.0),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """Phi3ForCausalLM puts `model.` before what Phi3Model has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            r.hidden(x)
            h = r.rms_norm("attn_norm", x, vector(f"layers.{i}.input_layernorm.weight", width), eps)
            h = r.linear("qkv", h, matrix(f"{attn}.qkv_proj", c.query_width + 2 * c.kv_width, width))
            h = r.attention("attn", h, **c.heads, scale=c.head_dim**-0.5, rope=rope, window=c.sliding_window)
            x = r.linear("attn_out", h, matrix(f"{attn}.o_proj", width, c.query_width), residual=x)
            h = r.rms_norm("ffn_norm", x, vector(f"layers.{i}.post_attention_layernorm.weight", width), eps)
            h = r.linear("ffn_gate_up", h, fused_gate_up(f"{mlp}.gate_up_proj", width, ffn), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=x)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), vector("norm.weight", width), eps))
    return r.finish(r.linear("logits", x, head), ignored=IGNORED, aliases=c.aliases)
