"""ModernBERT (model_type modernbert): norm before each block, rotary positions, gated feed-forward, no biases.

Most layers see a window of local_attention / 2 tokens to both sides, and rotate by another theta than the others. The
first layer's attention has no norm, for the embeddings have been normalised. Every head begins with dense, activation
and norm; that of sequence-classification runs on the first row, or on the mean of all.
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
from ..program.tensors import Buffer, Derived, Matrix, Source, Vector
from .blocks import ACTIVATIONS, matrix, vector
from .encoders import Head, HeadNames, encoder_network, head_from_fields, vocabulary
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, ropes_by_layer_type

# Tensors of heads; a checkpoint with none of them is a base model, whatever its `architectures` say.
HEAD_TENSORS = r"(head|decoder|classifier)\..*"
FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}

_HEADS = HeadNames(
    lm_dense="head.dense",
    lm_norm="head.norm",
    lm_decoder="decoder",
    lm_bias="decoder.bias",
    pooled="head.dense",
    classifier="classifier",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's ModernBertConfig, the fields that shape the network.

    layer_types: "full_attention" or "sliding_attention" of each layer; ropes: the rotary embedding of each type.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_activation: ActivationName
    classifier_activation: ActivationName
    max_position_embeddings: int
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    decoder_bias: bool
    classifier_bias: bool
    classifier_pooling: str
    local_attention: int
    layer_types: tuple[str, ...]
    ropes: Mapping[str, RopeParameters]
    tie_word_embeddings: bool
    head: Head

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        if head_dim % 2:
            fields.invalid(f"rotary positions need an even head width, hidden_size / num_attention_heads is {head_dim}")
        layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        positions = fields.integer("max_position_embeddings")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_activation=fields.choice("hidden_activation", "gelu", ACTIVATIONS),
            classifier_activation=fields.choice("classifier_activation", "gelu", ACTIVATIONS),
            max_position_embeddings=positions,
            norm_eps=fields.number("norm_eps", 1e-5),
            norm_bias=fields.flag("norm_bias", False),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
            decoder_bias=fields.flag("decoder_bias", True),
            classifier_bias=fields.flag("classifier_bias", False),
            classifier_pooling=fields.choice("classifier_pooling", "cls", {"cls": "cls", "mean": "mean"}),
            local_attention=fields.integer("local_attention", 128),
            layer_types=_layer_types(fields, layers),
            ropes={} if head_dim % 2 else ropes_by_layer_type(fields, head_dim, positions, THETAS),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            head=head_from_fields(fields),
        )
        fields.finish()
        return result


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    """From layer_types; without it every global_attn_every_n_layers-th layer is full, from the first on."""
    given = fields.raw("layer_types")
    if given is None:
        every = fields.integer("global_attn_every_n_layers", 3) or 1
        return tuple(SLIDING if i % every else FULL for i in range(layers))
    if isinstance(given, list) and len(given) == layers and all(kind in (FULL, SLIDING) for kind in given):
        return tuple(given)
    fields.invalid(f"layer_types must list {FULL!r} or {SLIDING!r} for each of {layers} layers, got {given!r:.120}")
    return ()


def canonical(name: str) -> str:
    """ModernBertForMaskedLM and so on put `model.` before what ModernBertModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    width, ffn = c.hidden_size, c.intermediate_size
    head_dim = width // c.num_attention_heads
    r = Recorder("modernbert", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings, causal=False)
    words, decoder, aliases = vocabulary(
        "embeddings.tok_embeddings", c.vocab_size, width, c.head, _HEADS, c.tie_word_embeddings, c.decoder_bias
    )
    ropes = {
        kind: r.rotary(f"rope_{kind.partition('_')[0]}", c.ropes[kind].inv_freq, c.ropes[kind].scaling)
        for kind in dict.fromkeys(c.layer_types)
    }
    x = r.hidden(_norm(r, "embed_norm", r.embed("embed", words), "embeddings.norm", c))
    for i, kind in enumerate(c.layer_types):
        p = f"layers.{i}"
        with r.layer(i):
            h = _norm(r, "attn_norm", x, f"{p}.attn_norm", c) if i else x
            h = r.linear("qkv", h, matrix(f"{p}.attn.Wqkv", 3 * width, width, bias=c.attention_bias))
            h = r.attention(
                "attn",
                h,
                num_heads=c.num_attention_heads,
                num_kv_heads=c.num_attention_heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rope=ropes[kind],
                window=c.local_attention // 2 + 1 if kind == SLIDING else 0,
            )
            x = r.linear("attn_out", h, matrix(f"{p}.attn.Wo", width, width, bias=c.attention_bias), residual=x)
            h = _norm(r, "ffn_norm", x, f"{p}.mlp_norm", c)
            h = r.linear("ffn_gate_up", h, _gate_up(f"{p}.mlp.Wi", ffn, width, c.mlp_bias), c.hidden_activation)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.Wo", width, ffn, bias=c.mlp_bias), residual=x)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(_norm(r, "norm", x, "final_norm", c))
    output = _head(r, x, c, decoder)
    return encoder_network(r, output, c.head, ignored=(HEAD_TENSORS,), aliases=aliases)


def _head(r: Recorder, x: Buffer, c: Config, decoder: Matrix) -> Buffer:
    if c.head.name == "sequence-classification" and c.classifier_pooling == "mean":
        x = _mean(r, x, c)
    rows = r.select("rows", x)
    if c.head.name is None:
        return rows
    weight = matrix("head.dense", c.hidden_size, c.hidden_size, bias=c.classifier_bias)
    h = _norm(r, "head_norm", r.linear("head_dense", rows, weight, c.classifier_activation), "head.norm", c)
    if c.head.name == "masked-lm":
        return r.linear("logits", h, decoder)
    return r.linear("logits", h, matrix("classifier", c.head.outputs, c.hidden_size, bias=True))


def _mean(r: Recorder, x: Buffer, c: Config) -> Buffer:
    """[T, D]: the mean of the sequence's rows, on each of them: attention whose scores are all 0 to x itself."""
    width = c.hidden_size

    def weight(_: object) -> NDArray[np.float32]:  # made at load, when the sizes are known to be those of the tensors
        return np.eye(3 * width, width, -2 * width, dtype=np.float32)

    with r.layer(c.num_hidden_layers):
        source = r.derived("mean.qkv", (3 * width, width), Derived((), weight))
        h = r.linear("mean_qkv", x, Matrix("mean.qkv", (3 * width, width), (source,)))
        heads = c.num_attention_heads
        return r.attention("mean", h, num_heads=heads, num_kv_heads=heads, head_dim=width // heads, scale=1.0)


def _gate_up(name: str, ffn: int, width: int, bias: bool) -> Matrix:
    """Wi holds the part that is activated first, then what it multiplies."""
    halves = ((0, ffn), (ffn, 2 * ffn))
    weights = tuple(Source(f"{name}.weight", (2 * ffn, width), begin=b, end=e) for b, e in halves)
    biases = tuple(Source(f"{name}.bias", (2 * ffn,), begin=b, end=e) for b, e in halves) if bias else ()
    return Matrix(name, (2 * ffn, width), weights, biases, gated=True)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    weight = vector(f"{weights}.weight", c.hidden_size)
    bias: Vector | None = vector(f"{weights}.bias", c.hidden_size) if c.norm_bias else None
    return r.layer_norm(name, x, weight, bias, c.norm_eps)
