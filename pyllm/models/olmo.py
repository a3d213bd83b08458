"""OLMo (model_type olmo): Llama's blocks with LayerNorms that have neither weights nor biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..program.program import Program
from ..program.recorder import Recorder
from ..program.tensors import Vector
from .blocks import matrix
from .decoder import IGNORED, DecoderConfig, decoder_fields, gate_up, qkv
from .fields import Fields
from .rope import RopeParameters, rope_from_fields

EPS = 1e-5  # of every norm; no field of the configuration


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's OlmoConfig, the fields that shape the network."""

    attention_bias: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        shared = decoder_fields(fields)
        if fields.raw("clip_qkv") is not None:
            fields.unsupported("clip_qkv: bounded queries, keys and values")
        result = Config(
            **shared,
            attention_bias=fields.flag("attention_bias", False),
            rope=rope_from_fields(fields, shared["head_dim"], shared["max_position_embeddings"]),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """OlmoForCausalLM puts `model.` before what OlmoModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn = c.hidden_size, c.intermediate_size
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables
    ones = Vector("ones", (width,), r.constant("ones", np.ones(width, np.float32)))

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            r.hidden(x)
            h = r.layer_norm("attn_norm", x, ones, None, EPS)
            h = r.linear("qkv", h, qkv(attn, c, bias=c.attention_bias))
            h = r.attention("attn", h, **c.heads, scale=c.head_dim**-0.5, rope=rope)
            o_proj = matrix(f"{attn}.o_proj", width, c.query_width, bias=c.attention_bias)
            x = r.linear("attn_out", h, o_proj, residual=x)
            h = r.layer_norm("ffn_norm", x, ones, None, EPS)
            h = r.linear("ffn_gate_up", h, gate_up(mlp, width, ffn), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), ones, None, EPS))
    return r.finish(r.linear("logits", x, head), ignored=IGNORED, aliases=c.aliases)
