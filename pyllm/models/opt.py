"""OPT (model_type opt): learned positions from row 2 on, norms before the blocks, ReLU, a tied head.

The 350m has its norms after the blocks and none at the end, and embeddings narrower than the layers, with a projection
on either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Vector
from .blocks import ACTIVATIONS, joined, matrix, norm, table
from .fields import MAX_LAYERS, Fields

POSITION_OFFSET = 2
NORM_EPS = 1e-5  # torch's own, no field says otherwise
IGNORED = (r"version", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's OPTConfig, the fields that shape the network."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    word_embed_proj_dim: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    activation_function: ActivationName
    do_layer_norm_before: bool
    remove_final_layer_norm: bool
    enable_bias: bool
    layer_norm_elementwise_affine: bool
    tie_word_embeddings: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        width, heads, _ = fields.heads("hidden_size", "num_attention_heads")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=fields.integer("max_position_embeddings", 2048),
            hidden_size=width,
            word_embed_proj_dim=fields.integer("word_embed_proj_dim", width, low=1 if width else 0),
            ffn_dim=fields.integer("ffn_dim"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            activation_function=fields.choice("activation_function", "relu", ACTIVATIONS),
            do_layer_norm_before=fields.flag("do_layer_norm_before", True),
            remove_final_layer_norm=fields.flag("_remove_final_layer_norm", False),
            enable_bias=fields.flag("enable_bias", True),
            layer_norm_elementwise_affine=fields.flag("layer_norm_elementwise_affine", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """OPTForCausalLM puts `model.decoder.` before, OPTModel (and most of the Hub's files) `decoder.`."""
    return name.removeprefix("model.").removeprefix("decoder.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, narrow, ffn, bias = c.hidden_size, c.word_embed_proj_dim, c.ffn_dim, c.enable_bias
    heads = c.num_attention_heads
    head_dim = width // heads
    r = Recorder("opt", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings)
    tokens = table("embed_tokens", c.vocab_size, narrow)
    positions = table("embed_positions", c.max_position_embeddings + POSITION_OFFSET, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, narrow)

    if narrow == width:
        x = r.embed("embed", tokens, positions=positions, position_offset=POSITION_OFFSET)
    else:
        x = r.embed_positions("positions", positions, offset=POSITION_OFFSET)
        x = r.linear("project_in", r.embed("embed", tokens), matrix("project_in", width, narrow), residual=x)
    r.hidden(x)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn = f"layers.{i}", f"layers.{i}.self_attn"
            qkv = joined(f"{attn}.qkv_proj", [(f"{attn}.{part}_proj", width) for part in "qkv"], width, bias=bias)
            h = _norm(r, "attn_norm", x, f"{p}.self_attn_layer_norm", c) if c.do_layer_norm_before else x
            h = r.linear("qkv", h, qkv)
            h = r.attention("attn", h, num_heads=heads, num_kv_heads=heads, head_dim=head_dim, scale=head_dim**-0.5)
            x = r.linear("attn_out", h, matrix(f"{attn}.out_proj", width, width, bias=bias), residual=x)
            x = x if c.do_layer_norm_before else _norm(r, "attn_norm", x, f"{p}.self_attn_layer_norm", c)
            h = _norm(r, "ffn_norm", x, f"{p}.final_layer_norm", c) if c.do_layer_norm_before else x
            h = r.linear("ffn_up", h, matrix(f"{p}.fc1", ffn, width, bias=bias), c.activation_function)
            x = r.linear("ffn_out", h, matrix(f"{p}.fc2", width, ffn, bias=bias), residual=x)
            x = x if c.do_layer_norm_before else _norm(r, "ffn_norm", x, f"{p}.final_layer_norm", c)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.select("last", x)
    if c.do_layer_norm_before and not c.remove_final_layer_norm:
        x = _norm(r, "norm", x, "final_layer_norm", c)
    if narrow != width:
        x = r.linear("project_out", x, matrix("project_out", narrow, width))
    logits = r.linear("logits", r.hidden(x), head)
    tied = (("embed_tokens.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    if c.layer_norm_elementwise_affine:
        return r.layer_norm(name, x, *norm(weights, c.hidden_size), NORM_EPS)
    ones = r.constant("ones", np.ones(c.hidden_size, np.float32))
    return r.layer_norm(name, x, Vector("ones", (c.hidden_size,), ones), None, NORM_EPS)
