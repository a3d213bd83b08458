"""MPNet (model_type mpnet): RoBERTa without token types, with a learned bias by distance that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
from ..program.tensors import RelativeBias, Source
from .blocks import ACTIVATIONS, table
from .encoders import (
    IGNORED,
    Head,
    HeadNames,
    HeadShape,
    LayerNames,
    LayerShape,
    encoder_network,
    head_from_fields,
    head_output,
    norm,
    positions_from_fields,
    post_norm_layer,
    refuse_decoders,
    vocabulary,
)
from .fields import MAX_LAYERS, Fields

# Tensors of heads; a checkpoint with none of them is a base model, whatever its `architectures` say.
HEAD_TENSORS = r"(lm_head|classifier|qa_outputs)\..*"
POSITION_OFFSET = 2  # position 0 lies after the padding's, 1, which is no field of the configuration
BUCKETS, MAX_DISTANCE = 32, 128  # nor are these

_HEADS = HeadNames(
    lm_dense="lm_head.dense",
    lm_norm="lm_head.layer_norm",
    lm_decoder="lm_head.decoder",
    lm_bias="lm_head.bias",
    pooled="classifier.dense",
    classifier="classifier.out_proj",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's MPNetConfig, the fields that shape the network."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: ActivationName
    max_positions: int
    relative_attention_num_buckets: int
    layer_norm_eps: float
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        refuse_decoders(fields)
        width, heads, _ = fields.heads("hidden_size", "num_attention_heads")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            hidden_act=fields.choice("hidden_act", "gelu", ACTIVATIONS),
            max_positions=positions_from_fields(fields, POSITION_OFFSET),
            relative_attention_num_buckets=fields.integer("relative_attention_num_buckets", BUCKETS, low=BUCKETS),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=head_from_fields(fields),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """MPNetForMaskedLM and so on put `mpnet.` before what MPNetModel has without."""
    return name.removeprefix("mpnet.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    r = Recorder("mpnet", vocab_size=c.vocab_size, max_positions=c.max_positions, causal=False)
    words, decoder, aliases = vocabulary(
        "embeddings.word_embeddings", c.vocab_size, c.hidden_size, c.head, _HEADS, c.tie_word_embeddings
    )
    positions = table("embeddings.position_embeddings", c.max_positions + POSITION_OFFSET, c.hidden_size)
    x = r.embed("embed", words, positions=positions, position_offset=POSITION_OFFSET)
    x = r.hidden(norm(r, "embed_norm", x, "embeddings.LayerNorm", c.layer_norm_eps))
    source = Source("encoder.relative_attention_bias.weight", (c.relative_attention_num_buckets, c.num_attention_heads))
    bias = RelativeBias(source, buckets(), -MAX_DISTANCE)
    shape = LayerShape(
        c.hidden_size,
        c.num_attention_heads,
        c.intermediate_size,
        c.hidden_act,
        c.layer_norm_eps,
        lambda layer, qkv: bias,
    )
    for i in range(c.num_hidden_layers):
        x = post_norm_layer(r, i, x, _layer_names(i), shape)
    output = head_output(r, x, c.head, _HEADS, HeadShape(c.layer_norm_eps, "gelu", "tanh", decoder))
    return encoder_network(r, output, c.head, ignored=(*IGNORED, HEAD_TENSORS), aliases=aliases)


def buckets() -> tuple[int, ...]:
    """Row of the table for distances (key - query) of -128 to 128: one each up to 7, then by the logarithm; the upper
    half for keys that follow (T5's bidirectional buckets, Raffel et al. 2020)."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
    far = np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(MAX_DISTANCE / exact)
    )
    by_logarithm = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    rows = np.where(far < exact, far, by_logarithm) + half * (distance > 0)
    return tuple(int(row) for row in rows)


def _layer_names(index: int) -> LayerNames:
    p = f"encoder.layer.{index}"
    attention = f"{p}.attention.attn"
    return LayerNames(
        qkv=(f"{attention}.q", f"{attention}.k", f"{attention}.v"),
        attn_out=f"{attention}.o",
        attn_norm=f"{p}.attention.LayerNorm",
        ffn_up=f"{p}.intermediate.dense",
        ffn_out=f"{p}.output.dense",
        ffn_norm=f"{p}.output.LayerNorm",
    )
