"""DistilBERT (model_type distilbert): BERT without token types and pooler, by field and tensor names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
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
HEAD_TENSORS = r"(vocab_(transform|layer_norm|projector)|pre_classifier|classifier|qa_outputs)\..*"
EPS = 1e-12  # no field of the configuration
# What its fields are called in other families; transformers reads both.
NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}

_HEADS = HeadNames(
    lm_dense="vocab_transform",
    lm_norm="vocab_layer_norm",
    lm_decoder="vocab_projector",
    lm_bias="vocab_projector.bias",
    pooled="pre_classifier",
    classifier="classifier",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's DistilBertConfig, the fields that shape the network; sinusoidal positions are stored."""

    vocab_size: int
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    activation: ActivationName
    max_position_embeddings: int
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, NAMES)
        refuse_decoders(fields)
        width, heads, _ = fields.heads("dim", "n_heads")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            dim=width,
            hidden_dim=fields.integer("hidden_dim"),
            n_layers=fields.integer("n_layers", high=MAX_LAYERS),
            n_heads=heads,
            activation=fields.choice("activation", "gelu", ACTIVATIONS),
            max_position_embeddings=positions_from_fields(fields, 0),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=head_from_fields(fields),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """DistilBertForMaskedLM and so on put `distilbert.` before what DistilBertModel has without."""
    return name.removeprefix("distilbert.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    r = Recorder("distilbert", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings, causal=False)
    words, decoder, aliases = vocabulary(
        "embeddings.word_embeddings", c.vocab_size, c.dim, c.head, _HEADS, c.tie_word_embeddings
    )
    positions = table("embeddings.position_embeddings", c.max_position_embeddings, c.dim)
    x = r.hidden(norm(r, "embed_norm", r.embed("embed", words, positions=positions), "embeddings.LayerNorm", EPS))
    shape = LayerShape(c.dim, c.n_heads, c.hidden_dim, c.activation, EPS)
    for i in range(c.n_layers):
        x = post_norm_layer(r, i, x, _layer_names(i), shape)
    output = head_output(r, x, c.head, _HEADS, HeadShape(EPS, c.activation, "relu", decoder))
    return encoder_network(r, output, c.head, ignored=(*IGNORED, HEAD_TENSORS), aliases=aliases)


def _layer_names(index: int) -> LayerNames:
    p = f"transformer.layer.{index}"
    return LayerNames(
        qkv=(f"{p}.attention.q_lin", f"{p}.attention.k_lin", f"{p}.attention.v_lin"),
        attn_out=f"{p}.attention.out_lin",
        attn_norm=f"{p}.sa_layer_norm",
        ffn_up=f"{p}.ffn.lin1",
        ffn_out=f"{p}.ffn.lin2",
        ffn_norm=f"{p}.output_layer_norm",
    )
