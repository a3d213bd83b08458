"""DeBERTa v2 and v3 (model_type deberta-v2): BERT with disentangled attention.

A score is content to content, plus content to position (the query with an embedding of the distance), plus position to
content (the key with one), He et al. 2021. Both embeddings go through projections that depend on weights alone, so they
are projected at load, and a term is the queries or keys of each head times a matrix [distances, E]. A convolution
beside the first layer (deberta-v2-xlarge) has no operation here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Derived, Disentangled, Matrix, Source
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
from .fields import LARGEST, MAX_LAYERS, Fields

# Tensors of heads; a checkpoint with none of them is a base model, whatever its `architectures` say.
HEAD_TENSORS = r"(cls|lm_predictions|classifier|qa_outputs)\..*"
# Of pretraining, and the table of positions that a model without position_biased_input has and does not read.
UNUSED = r"mask_predictions\..*"
POSITIONS = r"embeddings\.position_embeddings\.weight"
MAX_SPAN = 1 << 16
MAX_HEADS = 1 << 16  # of all layers together, for each has matrices of its own; the largest model has 1,152

_LEGACY_HEADS = HeadNames(
    lm_dense="cls.predictions.transform.dense",
    lm_norm="cls.predictions.transform.LayerNorm",
    lm_decoder="cls.predictions.decoder",
    lm_bias="cls.predictions.bias",
    pooled="pooler.dense",
    classifier="classifier",
)
_HEADS = HeadNames(
    lm_dense="lm_predictions.lm_head.dense",
    lm_norm="lm_predictions.lm_head.LayerNorm",
    lm_decoder="lm_predictions.lm_head.decoder",
    lm_bias="lm_predictions.lm_head.bias",
    pooled="pooler.dense",
    classifier="classifier",
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """Hugging Face's DebertaV2Config, the fields that shape the network.

    span: embeddings of distances to either side; terms: "c2p", "p2c", those of pos_att_type.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: ActivationName
    pooler_hidden_act: ActivationName
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    relative_attention: bool
    position_buckets: int
    max_relative_positions: int
    norm_rel_ebd: bool
    position_biased_input: bool
    share_att_key: bool
    terms: tuple[str, ...]
    legacy: bool
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        refuse_decoders(fields)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        for name, value in (("attention_head_size", head_dim), ("pooler_hidden_size", width)):
            if fields.integer(name, value, low=0) != value:
                fields.unsupported(f"{name} other than {value}")
        if fields.integer("conv_kernel_size", 0, low=0):
            fields.unsupported("conv_kernel_size: a convolution beside the first layer")
        positions = positions_from_fields(fields, 0)
        if positions > MAX_SPAN:
            fields.invalid(f"max_position_embeddings must be up to {MAX_SPAN}, got {positions}")
        longest = fields.integer("max_relative_positions", -1, low=-1, high=MAX_SPAN)
        longest = longest if longest > 0 else positions
        buckets = fields.integer("position_buckets", -1, low=-1, high=MAX_SPAN)
        if buckets > 0 and longest and not 1 <= buckets // 2 < longest - 1:
            fields.invalid(f"position_buckets must be 2 or more and less than 2 * {longest - 1}, got {buckets}")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            embedding_size=fields.integer("embedding_size", width, low=0 if not width else 1),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            hidden_act=fields.choice("hidden_act", "gelu", ACTIVATIONS),
            pooler_hidden_act=fields.choice("pooler_hidden_act", "gelu", ACTIVATIONS | {"tanh": "tanh"}),
            max_position_embeddings=positions,
            type_vocab_size=fields.integer("type_vocab_size", 0, low=0),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-7),
            relative_attention=fields.flag("relative_attention", False),
            position_buckets=buckets,
            max_relative_positions=longest,
            norm_rel_ebd=_norm_rel_ebd(fields),
            position_biased_input=fields.flag("position_biased_input", True),
            share_att_key=fields.flag("share_att_key", False),
            terms=_terms(fields),
            legacy=fields.flag("legacy", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=head_from_fields(fields),
        )
        if heads * 2 * max(0, result.span) > LARGEST:
            fields.invalid(f"num_attention_heads * distances must be up to {LARGEST}, got {heads * 2 * result.span}")
        if result.num_hidden_layers * heads > MAX_HEADS:
            fields.invalid(
                f"num_hidden_layers * num_attention_heads must be up to {MAX_HEADS}, "
                f"got {result.num_hidden_layers * heads}"
            )
        fields.finish()
        return result

    @property
    def span(self) -> int:
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions

    @property
    def scale(self) -> float:
        """Of each of the terms of a score, of which there is one more than pos_att_type has."""
        head_dim = self.hidden_size // self.num_attention_heads
        return float((head_dim * (1 + len(self.terms))) ** -0.5)


def _parts(fields: Fields, name: str, default: str) -> list[str]:
    """A list of words, or a text that joins them by "|"."""
    value = fields.raw(name)
    words = (default if value is None else value).split("|") if isinstance(value, str | None) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        fields.invalid(f'{name} must be words joined by "|", got {value!r:.80}')
        return []
    return [word.strip().lower() for word in words if word.strip()]


def _terms(fields: Fields) -> tuple[str, ...]:
    found = _parts(fields, "pos_att_type", "")
    if not set(found) <= {"c2p", "p2c"}:
        fields.unsupported(f"pos_att_type {fields.raw('pos_att_type')!r:.80} (supported: c2p, p2c)")
    return tuple(term for term in ("c2p", "p2c") if term in found)


def _norm_rel_ebd(fields: Fields) -> bool:
    found = _parts(fields, "norm_rel_ebd", "none")
    if not set(found) <= {"none", "layer_norm"}:
        fields.unsupported(f"norm_rel_ebd {fields.raw('norm_rel_ebd')!r:.80} (supported: none, layer_norm)")
    return "layer_norm" in found


def canonical(name: str) -> str:
    """DebertaV2ForMaskedLM and so on put `deberta.` before what DebertaV2Model has without."""
    return name.removeprefix("deberta.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    r = Recorder("deberta-v2", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings, causal=False)
    heads = _LEGACY_HEADS if c.legacy else _HEADS
    words, decoder, aliases = vocabulary(
        "embeddings.word_embeddings", c.vocab_size, c.embedding_size, c.head, heads, c.tie_word_embeddings
    )
    x = r.embed(
        "embed",
        words,
        positions=table("embeddings.position_embeddings", c.max_position_embeddings, c.embedding_size)
        if c.position_biased_input
        else None,
        types=table("embeddings.token_type_embeddings", c.type_vocab_size, c.embedding_size)
        if c.type_vocab_size
        else None,
    )
    if c.embedding_size != c.hidden_size:
        x = r.linear("embed_project", x, matrix("embeddings.embed_proj", c.hidden_size, c.embedding_size))
    x = r.hidden(norm(r, "embed_norm", x, "embeddings.LayerNorm", c.layer_norm_eps))
    bias = _Bias(r, c) if c.relative_attention and c.terms else None
    shape = LayerShape(
        c.hidden_size,
        c.num_attention_heads,
        c.intermediate_size,
        c.hidden_act,
        c.layer_norm_eps,
        bias.of_layer if bias else None,
        c.scale,
    )
    for i in range(c.num_hidden_layers):
        x = post_norm_layer(r, i, x, _layer_names(i), shape)
    output = head_output(r, x, c.head, heads, HeadShape(c.layer_norm_eps, c.hidden_act, c.pooler_hidden_act, decoder))
    distances = () if bias else (r"encoder\.(rel_embeddings|LayerNorm)\..*",)
    ignored = (*IGNORED, HEAD_TENSORS, UNUSED, *distances, *(() if c.position_biased_input else (POSITIONS,)))
    return encoder_network(r, output, c.head, ignored=ignored, aliases=aliases)


class _Bias:
    """The terms with positions of every layer's scores."""

    def __init__(self, r: Recorder, c: Config) -> None:
        self._r = r
        self._c = c
        self._index = distance_index(c.max_position_embeddings, c.position_buckets, c.max_relative_positions)
        width = c.hidden_size
        self._distances = [Source("encoder.rel_embeddings.weight", (2 * c.span, width))]
        if c.norm_rel_ebd:
            self._distances += [Source(f"encoder.LayerNorm.{kind}", (width,)) for kind in ("weight", "bias")]

    def of_layer(self, layer: int, qkv: Buffer) -> Disentangled:
        """Records the terms of one layer with queries, keys and values qkv [T, 3 * D]."""
        c, attention = self._c, f"encoder.layer.{layer}.attention.self"
        prefix = "" if c.share_att_key else "pos_"
        parts = {"c2p": (0, "key_proj"), "p2c": (c.hidden_size, "query_proj")}  # queries by keys of distances, and back
        buffers = {}
        for term in c.terms:
            begin, projection = parts[term]
            weights = [self._matrix(f"{attention}.{prefix}{projection}", head) for head in range(c.num_attention_heads)]
            buffers[term] = self._r.head_linear(term, qkv, weights, begin=begin)
        first = 1 - c.max_position_embeddings
        heads, index = c.num_attention_heads, self._index
        return Disentangled(buffers.get("c2p"), buffers.get("p2c"), heads, 2 * c.span, first, index, index)

    def _matrix(self, projection: str, head: int) -> Matrix:
        """[2 span, E]: row i is scale * the head's part of the projection of embedding i."""
        width = self._c.hidden_size
        head_dim = width // self._c.num_attention_heads
        begin, end = head * head_dim, (head + 1) * head_dim
        weight = Source(f"{projection}.weight", (width, width), begin=begin, end=end)
        bias = Source(f"{projection}.bias", (width,), begin=begin, end=end)
        name, shape = f"{projection}.distances.{head}", (2 * self._c.span, head_dim)
        derived = self._r.derived(name, shape, Derived((*self._distances, weight, bias), self._compute))
        return Matrix(name, shape, (derived,))

    def _compute(self, arrays: list[Floats]) -> Floats:
        """arrays: the embeddings of distances [2 span, D] (and their norm), weight [E, D] and bias [E] of a head's part
        of their projection."""
        c = self._c
        embeddings, *norm_of, weight, bias = (array.astype(np.float64) for array in arrays)
        if c.norm_rel_ebd:
            centred = embeddings - embeddings.mean(-1, keepdims=True)
            deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + c.layer_norm_eps)
            embeddings = centred / deviation * norm_of[0] + norm_of[1]
        return np.asarray(c.scale * (embeddings @ weight.T + bias), np.float32)


def distance_index(positions: int, buckets: int, longest: int) -> tuple[int, ...]:
    """Which embedding of 2 * span stands for each distance key - query from 1 - positions to positions - 1.

    buckets > 0: one each up to half of them, then by the logarithm up to `longest`, rounded in float32 as transformers
    does; otherwise one each up to `longest`.
    """
    relative = -np.arange(1 - positions, positions)
    span = longest
    if buckets > 0:
        span, middle = buckets, buckets // 2
        far = np.where(np.abs(relative) < middle, middle - 1, np.abs(relative)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(far / np.float32(middle)) / np.log(np.float32((longest - 1) / middle))
            by_logarithm = np.ceil(ratio * np.float32(middle - 1)) + middle
        near = np.abs(relative) <= middle
        relative = np.where(near, relative, np.where(near, 0, by_logarithm) * np.sign(relative)).astype(np.int64)
    return tuple(int(i) for i in np.clip(relative + span, 0, 2 * span - 1))


def _layer_names(index: int) -> LayerNames:
    p = f"encoder.layer.{index}"
    attention = f"{p}.attention.self"
    return LayerNames(
        qkv=(f"{attention}.query_proj", f"{attention}.key_proj", f"{attention}.value_proj"),
        attn_out=f"{p}.attention.output.dense",
        attn_norm=f"{p}.attention.output.LayerNorm",
        ffn_up=f"{p}.intermediate.dense",
        ffn_out=f"{p}.output.dense",
        ffn_norm=f"{p}.output.LayerNorm",
    )
