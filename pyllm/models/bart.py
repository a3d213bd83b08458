"""BART and what differs from it by fields only: bart, plbart, mbart, pegasus, marian, m2m_100 (NLLB too), blenderbot,
blenderbot-small.

LayerNorm before or after each block, biases everywhere, plain feed-forward, learned or sinusoidal positions, one
embedding table for sources, targets and the head, or several. Checkpoints of the ForConditionalGeneration (MarianMT)
classes and of the bare models, whose head is tied; ForSequenceClassification as a head of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..program.network import Network
from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Matrix, Source
from .blocks import ACTIVATIONS, joined, matrix, table, vector
from .fields import MAX_LAYERS, Fields
from .sinusoids import interleaved, tensor2tensor

EPS = 1e-5  # torch.nn.LayerNorm's
MAX_LABELS = 1 << 20
MAX_COMPUTED = 1 << 28  # numbers in a computed table of positions
HEAD_TENSORS = r"classification_head\..*"
IGNORED = (r"(encoder|decoder)\.version", r"qa_outputs\..*")
IGNORED_POSITIONS = (r"(encoder|decoder)\.embed_positions\..*",)
IGNORED_HEAD = (r"lm_head\.weight", "final_logits_bias")


@dataclass(frozen=True)
class Wiring:
    """How a family is wired, where its config.json does not say.

    pre_norm       norms stand before the blocks, and one after the last layer; or else after each block
    embed_norm     a norm of the embeddings: of their sum with the positions, or (in the decoder) before these are added
    positions      learned tables, or computed ones: `tensor2tensor` [sin | cos] from position pad_token_id + 1 on,
                   `interleaved` frequencies as in the original Transformer, sines before cosines
    offset         row of the first position in a learned table
    logits_bias    the head has a bias, `final_logits_bias`, which some checkpoints leave out
    """

    pre_norm: bool
    embed_norm: Literal["none", "sum", "before positions"]
    positions: Literal["learned", "tensor2tensor", "interleaved"]
    offset: int = 0
    logits_bias: bool = True
    activation: str = "gelu"
    scale_embedding: bool = False


WIRINGS: dict[str, Wiring] = {
    "bart": Wiring(pre_norm=False, embed_norm="sum", positions="learned", offset=2),
    "plbart": Wiring(pre_norm=False, embed_norm="sum", positions="learned", offset=2, scale_embedding=True),
    "mbart": Wiring(pre_norm=True, embed_norm="sum", positions="learned", offset=2),
    "pegasus": Wiring(pre_norm=True, embed_norm="none", positions="interleaved"),
    "marian": Wiring(pre_norm=False, embed_norm="none", positions="interleaved"),
    "m2m_100": Wiring(
        pre_norm=True,
        embed_norm="none",
        positions="tensor2tensor",
        logits_bias=False,
        activation="relu",
        scale_embedding=True,
    ),
    "blenderbot": Wiring(pre_norm=True, embed_norm="none", positions="learned"),
    "blenderbot-small": Wiring(pre_norm=False, embed_norm="before positions", positions="learned"),
}


@dataclass(frozen=True)
class Stack:
    """The fields of an encoder or a decoder."""

    name: Literal["encoder", "decoder"]
    layers: int
    heads: int
    ffn_dim: int


@dataclass(frozen=True)
class Config:
    """Hugging Face's BartConfig and its siblings, the fields that shape the network.

    decoder_vocab_size: differs from vocab_size where Marian's share_encoder_decoder_embeddings is false.
    labels: classes of a ForSequenceClassification checkpoint, 0 of others.
    """

    model_type: str
    wiring: Wiring
    vocab_size: int
    decoder_vocab_size: int
    d_model: int
    encoder: Stack
    decoder: Stack
    max_position_embeddings: int
    activation_function: ActivationName
    scale_embedding: bool
    pad_token_id: int
    share_embeddings: bool
    tie_word_embeddings: bool
    labels: int

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        model_type = str(config["model_type"])
        wiring = WIRINGS[model_type]
        if not fields.flag("is_encoder_decoder", True):
            fields.unsupported("is_encoder_decoder false: a decoder by itself")
        width, positions = fields.integer("d_model"), fields.integer("max_position_embeddings")
        computed = wiring.positions != "learned"
        if computed and not (width >= 4 and width * positions <= MAX_COMPUTED):
            problem = f"d_model must be 4 or more, and its product with max_position_embeddings at most {MAX_COMPUTED}"
            fields.invalid(f"{problem}, got {width} and {positions}")
        vocab = fields.integer("vocab_size")
        share = model_type != "marian" or fields.flag("share_encoder_decoder_embeddings", True)
        result = Config(
            model_type=model_type,
            wiring=wiring,
            vocab_size=vocab,
            decoder_vocab_size=vocab if share else fields.integer("decoder_vocab_size", vocab),
            d_model=width,
            encoder=_stack(fields, "encoder", width),
            decoder=_stack(fields, "decoder", width),
            max_position_embeddings=positions,
            activation_function=fields.choice("activation_function", wiring.activation, ACTIVATIONS),
            scale_embedding=fields.flag("scale_embedding", wiring.scale_embedding),
            pad_token_id=fields.integer("pad_token_id", 1, low=0) if wiring.positions == "tensor2tensor" else 0,
            share_embeddings=share,
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            labels=_labels(fields),
        )
        fields.finish()
        return result


def _stack(fields: Fields, name: Literal["encoder", "decoder"], width: int) -> Stack:
    heads = fields.integer(f"{name}_attention_heads")
    if width and heads and width % heads:
        fields.invalid(f"d_model must be a multiple of {name}_attention_heads, got {width} and {heads}")
    layers = fields.integer(f"{name}_layers", high=MAX_LAYERS)
    return Stack(name, layers, heads, fields.integer(f"{name}_ffn_dim"))


def _labels(fields: Fields) -> int:
    """Classes of a ForSequenceClassification checkpoint: as many as id2label has, or num_labels, or 3. 0 of others."""
    architectures = fields.raw("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name.endswith(("ForQuestionAnswering", "ForCausalLM")):
        fields.unsupported(f"architectures {name!r}")
    if not name.endswith("ForSequenceClassification"):
        return 0
    labels = fields.raw("id2label")
    if labels is not None and not (isinstance(labels, dict) and 0 < len(labels) <= MAX_LABELS):
        fields.invalid(f"id2label must be an object of one to {MAX_LABELS} labels, got {labels!r:.80}")
        return 1
    return len(labels) if labels else fields.integer("num_labels", 3, high=MAX_LABELS)


def canonical(name: str) -> str:
    """The classes with heads put `model.` before what the bare models have without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    tables = _Tables(c)
    head = "sequence-classification" if c.labels else None
    return Network(c.model_type, encode=_encode(c, tables), step=_step(c, tables), head=head)


class _Tables:
    """The embedding tables. A table that both programs read is one matrix, with the head's bias if it is the head."""

    def __init__(self, c: Config) -> None:
        width = c.d_model
        bias: tuple[Source, ...] = ()
        if c.wiring.logits_bias and not c.labels:
            bias = (Source("final_logits_bias", (1, c.decoder_vocab_size), optional=True),)
        self.computed = _positions(c) if c.wiring.positions != "learned" else None
        self.aliases: tuple[tuple[str, str], ...] = ()
        self.fallbacks: tuple[tuple[str, str], ...] = ()
        shared, encoder, decoder = "shared", "encoder.embed_tokens", "decoder.embed_tokens"
        if c.share_embeddings and c.tie_word_embeddings:
            self.encoder = self.decoder = self.head = _biased(table(shared, c.vocab_size, width), bias)
            self.aliases = tuple((f"{shared}.weight", f"{name}.weight") for name in (encoder, decoder, "lm_head"))
            return
        self.encoder = table(encoder, c.vocab_size, width)
        if c.tie_word_embeddings:
            self.decoder = self.head = _biased(table(decoder, c.decoder_vocab_size, width), bias)
            self.aliases = ((f"{decoder}.weight", "lm_head.weight"),)
            return
        self.decoder = table(decoder, c.decoder_vocab_size, width)
        self.head = _biased(table("lm_head", c.decoder_vocab_size, width), bias)
        if c.share_embeddings:  # transformers 4 leaves `shared` in the file, 5 both of the others
            self.fallbacks = tuple((f"{name}.weight", f"{shared}.weight") for name in (encoder, decoder))


def _biased(weights: Matrix, bias: tuple[Source, ...]) -> Matrix:
    return Matrix(weights.name, weights.shape, weights.sources, bias)


def _encode(c: Config, tables: _Tables) -> Program:
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.max_position_embeddings, causal=False)
    x = r.hidden(_embed(r, c, c.encoder, tables.encoder, tables))
    for i in range(c.encoder.layers):
        with r.layer(i):
            x = _self_attention(r, c, c.encoder, x, i)
            x = _feed_forward(r, c, c.encoder, x, i)
            if i + 1 < c.encoder.layers:
                r.hidden(x)
    x = r.hidden(_norm(r, "norm", x, "encoder.layer_norm", c) if c.wiring.pre_norm else x)
    width, heads = c.d_model, c.decoder.heads
    for i in range(c.decoder.layers):
        with r.layer(i):
            attn = f"decoder.layers.{i}.encoder_attn"
            parts = [(f"{attn}.k_proj", width), (f"{attn}.v_proj", width)]
            kv = r.linear("cross_kv", x, joined(f"{attn}.kv_proj", parts, width, bias=True))
            r.store_cross(kv, i, num_kv_heads=heads, head_dim=width // heads)
    return r.finish(r.select("last", x))


def _step(c: Config, tables: _Tables) -> Program:
    r = Recorder(c.model_type, vocab_size=c.decoder_vocab_size, max_positions=c.max_position_embeddings)
    x = r.hidden(_embed(r, c, c.decoder, tables.decoder, tables))
    for i in range(c.decoder.layers):
        with r.layer(i):
            x = _self_attention(r, c, c.decoder, x, i)
            x = _cross_attention(r, c, x, i)
            x = _feed_forward(r, c, c.decoder, x, i)
            if i + 1 < c.decoder.layers:
                r.hidden(x)
    x = r.select("last", x)
    x = r.hidden(_norm(r, "norm", x, "decoder.layer_norm", c) if c.wiring.pre_norm else x)
    ignored = IGNORED + (() if c.wiring.positions == "learned" else IGNORED_POSITIONS)
    if not (c.share_embeddings and c.tie_word_embeddings):
        ignored += (r"shared\.weight",)
    if c.labels:
        head = "classification_head"
        h = r.linear("pooled", x, matrix(f"{head}.dense", c.d_model, c.d_model, bias=True), "tanh")
        logits = r.linear("logits", h, matrix(f"{head}.out_proj", c.labels, c.d_model, bias=True))
        ignored += IGNORED_HEAD
    else:
        logits = r.linear("logits", x, tables.head)
        ignored += (HEAD_TENSORS,)
    return r.finish(logits, ignored=ignored, aliases=tables.aliases, fallbacks=tables.fallbacks)


def _embed(r: Recorder, c: Config, stack: Stack, tokens: Matrix, tables: _Tables) -> Buffer:
    scale = math.sqrt(c.d_model) if c.scale_embedding else 1.0
    wiring, norm = c.wiring, f"{stack.name}.layernorm_embedding"
    if tables.computed is None:
        positions = table(f"{stack.name}.embed_positions", c.max_position_embeddings + wiring.offset, c.d_model)
    else:
        positions = Matrix("positions", tables.computed.shape, (r.constant("positions", tables.computed),))
    if wiring.embed_norm == "before positions" and stack.name == "decoder":
        x = r.embed("embed", tokens)  # unscaled, which the norm hardly notices
        return _norm(r, "embed_norm", x, norm, c, residual=r.embed_positions("positions", positions))
    x = r.embed("embed", tokens, positions=positions, position_offset=wiring.offset, scale=scale)
    return x if wiring.embed_norm == "none" else _norm(r, "embed_norm", x, norm, c)


def _self_attention(r: Recorder, c: Config, stack: Stack, x: Buffer, i: int) -> Buffer:
    p, width = f"{stack.name}.layers.{i}.self_attn", c.d_model
    parts = [(f"{p}.{name}_proj", width) for name in ("q", "k", "v")]
    h = _before(r, "attn_norm", x, f"{p}_layer_norm", c)
    h = r.linear("qkv", h, joined(f"{p}.qkv_proj", parts, width, bias=True))
    count, size = stack.heads, width // stack.heads
    h = r.attention("attn", h, num_heads=count, num_kv_heads=count, head_dim=size, scale=size**-0.5)
    x = r.linear("attn_out", h, matrix(f"{p}.out_proj", width, width, bias=True), residual=x)
    return _after(r, "attn_norm", x, f"{p}_layer_norm", c)


def _cross_attention(r: Recorder, c: Config, x: Buffer, i: int) -> Buffer:
    p, width = f"decoder.layers.{i}.encoder_attn", c.d_model
    count, size = c.decoder.heads, width // c.decoder.heads
    h = _before(r, "cross_norm", x, f"{p}_layer_norm", c)
    h = r.linear("cross_q", h, matrix(f"{p}.q_proj", width, width, bias=True))
    h = r.cross_attention("cross", h, num_heads=count, num_kv_heads=count, head_dim=size, scale=size**-0.5)
    x = r.linear("cross_out", h, matrix(f"{p}.out_proj", width, width, bias=True), residual=x)
    return _after(r, "cross_norm", x, f"{p}_layer_norm", c)


def _feed_forward(r: Recorder, c: Config, stack: Stack, x: Buffer, i: int) -> Buffer:
    p, width = f"{stack.name}.layers.{i}", c.d_model
    h = _before(r, "ffn_norm", x, f"{p}.final_layer_norm", c)
    h = r.linear("ffn_up", h, matrix(f"{p}.fc1", stack.ffn_dim, width, bias=True), c.activation_function)
    x = r.linear("ffn_out", h, matrix(f"{p}.fc2", width, stack.ffn_dim, bias=True), residual=x)
    return _after(r, "ffn_norm", x, f"{p}.final_layer_norm", c)


def _before(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    return _norm(r, name, x, weights, c) if c.wiring.pre_norm else x


def _after(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    return x if c.wiring.pre_norm else _norm(r, name, x, weights, c)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config, residual: Buffer | None = None) -> Buffer:
    weight, bias = vector(f"{weights}.weight", c.d_model), vector(f"{weights}.bias", c.d_model)
    return r.layer_norm(name, x, weight, bias, EPS, residual)


def _positions(c: Config) -> NDArray[np.float32]:
    """float32 [max_position_embeddings, d_model], the computed table; row 0 is a sequence's first position."""
    if c.wiring.positions == "interleaved":
        return interleaved(c.max_position_embeddings, c.d_model)
    return tensor2tensor(c.pad_token_id + 1, c.max_position_embeddings, c.d_model)
