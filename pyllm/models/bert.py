"""BERT and what differs from it by fields only: bert, roberta, xlm-roberta, camembert, electra.

Learned positions and token types, norm after each block, tied masked-lm decoder with a bias. RoBERTa's kin count
positions from pad_token_id + 1 (a padding token inside a text has a position here, like any other) and name their heads
otherwise. ELECTRA may have narrower embeddings (embeddings_project); its generator is a masked-lm, its discriminator
(ElectraForPreTraining) a token-classification with one output, the logit of "replaced".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
from ..program.tensors import Buffer
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
HEAD_TENSORS = r"(cls|lm_head|classifier|qa_outputs|generator_(predictions|lm_head)|discriminator_predictions)\..*"
PREFIXES = ("bert.", "roberta.", "electra.")

_BERT_HEADS = HeadNames(
    lm_dense="cls.predictions.transform.dense",
    lm_norm="cls.predictions.transform.LayerNorm",
    lm_decoder="cls.predictions.decoder",
    lm_bias="cls.predictions.bias",
    pooled="pooler.dense",
    classifier="classifier",
)
_ROBERTA_HEADS = HeadNames(
    lm_dense="lm_head.dense",
    lm_norm="lm_head.layer_norm",
    lm_decoder="lm_head.decoder",
    lm_bias="lm_head.bias",
    pooled="classifier.dense",
    classifier="classifier.out_proj",
)
_ELECTRA_HEADS = HeadNames(
    lm_dense="generator_predictions.dense",
    lm_norm="generator_predictions.LayerNorm",
    lm_decoder="generator_lm_head",
    lm_bias="generator_lm_head.bias",
    pooled="classifier.dense",
    classifier="classifier.out_proj",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's BertConfig, RobertaConfig and ElectraConfig, the fields that shape the network.

    max_positions: the longest sequence; position_offset: the row of position 0 in the table of positions.
    """

    model_type: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: ActivationName
    max_positions: int
    position_offset: int
    type_vocab_size: int
    layer_norm_eps: float
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        model_type = str(config["model_type"])
        refuse_decoders(fields)
        width, heads, _ = fields.heads("hidden_size", "num_attention_heads")
        is_electra = model_type == "electra"
        offset = 0 if model_type in ("bert", "electra") else fields.integer("pad_token_id", 1, low=0, high=1 << 20) + 1
        result = Config(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            embedding_size=fields.integer("embedding_size", 128) if is_electra else width,
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            hidden_act=fields.choice("hidden_act", "gelu", ACTIVATIONS),
            max_positions=positions_from_fields(fields, offset),
            position_offset=offset,
            type_vocab_size=fields.integer("type_vocab_size", 2),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=_head(fields, is_electra),
        )
        fields.finish()
        return result

    @property
    def heads(self) -> HeadNames:
        """Checkpoint names of the heads."""
        return {"bert": _BERT_HEADS, "electra": _ELECTRA_HEADS}.get(self.model_type, _ROBERTA_HEADS)


def _head(fields: Fields, is_electra: bool) -> Head:
    head = head_from_fields(fields)
    if is_electra and head.kind == "ForPreTraining":
        return Head("token-classification", 1, head.kind)
    return head


def canonical(name: str) -> str:
    """BertForMaskedLM and so on put a prefix before what BertModel has without; the first checkpoints, converted from
    TensorFlow, call a norm's weight and bias gamma and beta."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name.endswith((".gamma", ".beta")):
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.max_positions, causal=False)
    words, decoder, aliases = vocabulary(
        "embeddings.word_embeddings", c.vocab_size, c.embedding_size, c.head, c.heads, c.tie_word_embeddings
    )
    x = r.embed(
        "embed",
        words,
        positions=table("embeddings.position_embeddings", c.max_positions + c.position_offset, c.embedding_size),
        position_offset=c.position_offset,
        types=table("embeddings.token_type_embeddings", c.type_vocab_size, c.embedding_size),
    )
    x = norm(r, "embed_norm", x, "embeddings.LayerNorm", c.layer_norm_eps)
    if c.embedding_size != c.hidden_size:
        x = r.linear("embed_project", x, matrix("embeddings_project", c.hidden_size, c.embedding_size, bias=True))
    r.hidden(x)
    shape = LayerShape(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
    for i in range(c.num_hidden_layers):
        x = post_norm_layer(r, i, x, _layer_names(i), shape)

    if c.head.name == "token-classification" and c.head.kind == "ForPreTraining":
        output = _discriminator(r, x, c)
    else:
        lm_activation: ActivationName = c.hidden_act if c.model_type == "bert" else "gelu"
        pooled_activation: ActivationName = "gelu" if c.model_type == "electra" else "tanh"
        heads = HeadShape(c.layer_norm_eps, lm_activation, pooled_activation, decoder)
        output = head_output(r, x, c.head, c.heads, heads)
    return encoder_network(r, output, c.head, ignored=(*IGNORED, HEAD_TENSORS), aliases=aliases)


def _layer_names(index: int) -> LayerNames:
    p = f"encoder.layer.{index}"
    attention = f"{p}.attention.self"
    return LayerNames(
        qkv=(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
        attn_out=f"{p}.attention.output.dense",
        attn_norm=f"{p}.attention.output.LayerNorm",
        ffn_up=f"{p}.intermediate.dense",
        ffn_out=f"{p}.output.dense",
        ffn_norm=f"{p}.output.LayerNorm",
    )


def _discriminator(r: Recorder, x: Buffer, c: Config) -> Buffer:
    rows = r.select("rows", x)
    weight = matrix("discriminator_predictions.dense", c.hidden_size, c.hidden_size, bias=True)
    h = r.linear("head_dense", rows, weight, c.hidden_act)
    return r.linear("logits", h, matrix("discriminator_predictions.dense_prediction", 1, c.hidden_size, bias=True))
