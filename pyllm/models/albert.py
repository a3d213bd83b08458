"""ALBERT (model_type albert): BERT's layer with weights shared by all layers (of a group), and narrow embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, matrix, table
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
HEAD_TENSORS = r"(predictions|sop_classifier|classifier|qa_outputs)\..*"

_HEADS = HeadNames(
    lm_dense="predictions.dense",
    lm_norm="predictions.LayerNorm",
    lm_decoder="predictions.decoder",
    lm_bias="predictions.bias",
    pooled="pooler",
    classifier="classifier",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's AlbertConfig, the fields that shape the network."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_hidden_groups: int
    inner_group_num: int
    num_attention_heads: int
    hidden_act: ActivationName
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        refuse_decoders(fields)
        width, heads, _ = fields.heads("hidden_size", "num_attention_heads")
        layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        inner = fields.integer("inner_group_num", 1, high=MAX_LAYERS)
        if layers * inner > MAX_LAYERS:
            fields.invalid(f"num_hidden_layers * inner_group_num must be up to {MAX_LAYERS}, got {layers * inner}")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            embedding_size=fields.integer("embedding_size", 128),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_hidden_groups=fields.integer("num_hidden_groups", 1, high=max(1, layers)),
            inner_group_num=inner,
            num_attention_heads=heads,
            hidden_act=fields.choice("hidden_act", "gelu_new", ACTIVATIONS),
            max_position_embeddings=positions_from_fields(fields, 0),
            type_vocab_size=fields.integer("type_vocab_size", 2),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=head_from_fields(fields),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """AlbertForMaskedLM and so on put `albert.` before what AlbertModel has without."""
    return name.removeprefix("albert.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    r = Recorder("albert", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings, causal=False)
    words, decoder, aliases = vocabulary(
        "embeddings.word_embeddings", c.vocab_size, c.embedding_size, c.head, _HEADS, c.tie_word_embeddings
    )
    x = r.embed(
        "embed",
        words,
        positions=table("embeddings.position_embeddings", c.max_position_embeddings, c.embedding_size),
        types=table("embeddings.token_type_embeddings", c.type_vocab_size, c.embedding_size),
    )
    x = norm(r, "embed_norm", x, "embeddings.LayerNorm", c.layer_norm_eps)
    mapping = matrix("encoder.embedding_hidden_mapping_in", c.hidden_size, c.embedding_size, bias=True)
    x = r.hidden(r.linear("embed_project", x, mapping))
    shape = LayerShape(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
    for i in range(c.num_hidden_layers):
        group = int(i / (c.num_hidden_layers / c.num_hidden_groups))  # as transformers rounds it
        for inner in range(c.inner_group_num):
            x = post_norm_layer(r, i * c.inner_group_num + inner, x, _layer_names(group, inner), shape)
    output = head_output(r, x, c.head, _HEADS, HeadShape(c.layer_norm_eps, c.hidden_act, "tanh", decoder))
    return encoder_network(r, output, c.head, ignored=(*IGNORED, HEAD_TENSORS), aliases=aliases)


def _layer_names(group: int, inner: int) -> LayerNames:
    p = f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"
    return LayerNames(
        qkv=(f"{p}.attention.query", f"{p}.attention.key", f"{p}.attention.value"),
        attn_out=f"{p}.attention.dense",
        attn_norm=f"{p}.attention.LayerNorm",
        ffn_up=f"{p}.ffn",
        ffn_out=f"{p}.ffn_output",
        ffn_norm=f"{p}.full_layer_layer_norm",
    )
