"""A recorded program: a straight list of operations over buffers and weights. Data only; no recording, no running.

Rows: every buffer is [rows, cols] float32 where rows is "T" (tokens of this step) or "R" (rows that want an output).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .tensors import Alibi, Buffer, Derived, Disentangled, Matrix, RelativeBias, Source, Vector

ActivationName = Literal["none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"]


@dataclass(frozen=True)
class Embed:
    """out[t] = scale * table[ids[t]] (+ positions[position[t] + position_offset]) (+ types[token_types[t]]).

    index "positions": looks up position[t] + position_offset in `table` instead of ids[t].
    """

    out: Buffer
    table: Matrix
    positions: Matrix | None = None
    position_offset: int = 0
    scale: float = 1.0
    types: Matrix | None = None
    index: Literal["ids", "positions"] = "ids"


@dataclass(frozen=True)
class Rotary:
    """out[t] = [cos(position[t] * inv_freq), sin(position[t] * inv_freq)] * scaling; out is [T, 2 * len(inv_freq)].

    The angle is the float32 product, its cosine and sine are rounded to float32 (transformers' LlamaRotaryEmbedding).
    """

    out: Buffer
    inv_freq: tuple[float, ...]
    scaling: float = 1.0


@dataclass(frozen=True)
class Norm:
    """out = norm(x) (+ residual): layer norm (bias may be None) or RMS norm of each row."""

    out: Buffer
    x: Buffer
    kind: Literal["layer", "rms"]
    weight: Vector
    bias: Vector | None
    eps: float
    residual: Buffer | None = None


@dataclass(frozen=True)
class NormSlice:
    """Columns [begin, begin + count * width) as `count` groups of `width`, each normalised by itself.

    weight and bias are [width], shared by the groups, or [count * width].
    """

    begin: int
    width: int
    count: int
    weight: Vector
    bias: Vector | None = None


@dataclass(frozen=True)
class HeadNorm:
    """out = x with the columns of some slices normalised: query and key heads before they are rotated."""

    out: Buffer
    x: Buffer
    kind: Literal["layer", "rms"]
    slices: tuple[NormSlice, ...]
    eps: float


@dataclass(frozen=True)
class Linear:
    """out = residual + scale * cap(activation(x @ W.T + bias)); gated: activation(gate) * up with W = [gate; up].

    cap(y) = softcap * tanh(y / softcap), for softcap > 0. A gated linear has no softcap.
    """

    out: Buffer
    x: Buffer
    weight: Matrix
    activation: ActivationName = "none"
    residual: Buffer | None = None
    scale: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True)
class HeadLinear:
    """A matrix a head: with H of them, each [N, E], columns [h * N, (h + 1) * N) of out are
    x[:, begin + h * E : begin + (h + 1) * E] @ weights[h].T (+ its bias); out is [T, H * N]."""

    out: Buffer
    x: Buffer
    begin: int
    weights: tuple[Matrix, ...]


@dataclass(frozen=True)
class Experts:
    """Mixture of experts: out[t] = (residual[t] +) sum over its top_k experts e of p[t, e] * down_e(gated_e(x[t])).

    router is [T, n] (n experts), the logits of p = softmax(router[t]); the top_k largest are taken (ties: the lower
    index), divided by their sum when `normalize`. Experts are added in ascending order. shared: one more expert that
    every row takes, times sigmoid(router[t, n]); router is then [T, n + 1].
    """

    out: Buffer
    x: Buffer
    router: Buffer
    gate_up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]
    top_k: int
    activation: ActivationName
    normalize: bool
    shared: tuple[Matrix, Matrix] | None = None
    residual: Buffer | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All weights, expert by expert, the shared one last."""
        pairs = [*zip(self.gate_up, self.down, strict=True), *([self.shared] if self.shared else [])]
        return tuple(matrix for pair in pairs for matrix in pair)


@dataclass(frozen=True)
class Attention:
    """Rotates q and k (when `rope` is given), appends k and v to cache `layer`, and attends.

    qkv is [T, (num_heads + 2 * num_kv_heads) * head_dim]: all query heads, then key heads, then value heads.
    causal: keys after the query are hidden; window w > 0: keys at a distance of w or more are hidden (not causal:
    on both sides). scores = softcap(scale * q . k) + bias.
    """

    out: Buffer
    qkv: Buffer
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Buffer | None = None
    rope_interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    causal: bool = True
    bias: RelativeBias | Alibi | Disentangled | None = None


@dataclass(frozen=True)
class StoreCross:
    """Appends keys and values of an encoder's rows to cross cache `layer`, at their positions. Writes no buffer.

    kv is [T, 2 * num_kv_heads * head_dim]: all key heads, then all value heads.
    """

    kv: Buffer
    layer: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class CrossAttention:
    """Queries [T, num_heads * head_dim] attend to all keys of their sequence's source, in cross cache `layer`."""

    out: Buffer
    q: Buffer
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True)
class Select:
    """out[r] = x[logit_rows[r]]: only the rows that want an output go on."""

    out: Buffer
    x: Buffer


# Those that write `out`.
BufferOp = Embed | Rotary | Norm | HeadNorm | Linear | HeadLinear | Experts | Attention | CrossAttention | Select
Op = BufferOp | StoreCross


@dataclass(frozen=True)
class Program:
    """One straight list of ops; `output` ([R, n]) is what the last op writes: logits, or hidden states.

    num_layers, num_kv_heads, head_dim   shape of the cache of its own keys and values. Attention that is not causal
                                         keeps nothing between steps: all its layers use cache 0, num_layers is 1
    cross_layers, cross_kv_heads, cross_head_dim   shape of the cross cache it writes or reads (0: none)
    vocab_size                           ids lie below
    hidden                               buffers that are transformers' `hidden_states`, in its order
    constants                            float32 arrays that sources name and no checkpoint holds (sinusoids)
    derived                              tensors that sources name and that are computed from the checkpoint's
    """

    family: str
    ops: tuple[Op, ...]
    output: Buffer
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    ignored: tuple[str, ...] = field(default=())  # regular expressions of checkpoint names that are no weights
    aliases: tuple[tuple[str, str], ...] = field(default=())  # (a, b): tensor a may be stored as b, or as both if equal
    fallbacks: tuple[tuple[str, str], ...] = field(default=())  # (a, b): b stands for a where a is not stored
    cross_layers: int = 0
    cross_kv_heads: int = 0
    cross_head_dim: int = 0
    hidden: tuple[str, ...] = ()
    constants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)
    derived: Mapping[str, Derived] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        from pyllm.program.listing import listing

        return listing(self)

    @property
    def causal(self) -> bool:
        """Whether a sequence may come in pieces: no row sees a later one."""
        return all(op.causal for op in self.ops if isinstance(op, Attention))

    def matrices(self) -> list[Matrix]:
        """Every distinct matrix, in first-use order (a tied head appears once)."""
        found: dict[Matrix, None] = {}
        for op in self.ops:
            if isinstance(op, Embed):
                found |= dict.fromkeys(table for table in (op.table, op.positions, op.types) if table is not None)
            elif isinstance(op, Linear):
                found[op.weight] = None
            elif isinstance(op, HeadLinear):
                found |= dict.fromkeys(op.weights)
            elif isinstance(op, Experts):
                found |= dict.fromkeys(op.matrices)
        return list(found)

    def vectors(self) -> list[Vector]:
        """Every distinct norm vector, in first-use order."""
        found: dict[Vector, None] = {}
        for op in self.ops:
            if isinstance(op, Norm):
                found |= dict.fromkeys(vector for vector in (op.weight, op.bias) if vector is not None)
            elif isinstance(op, HeadNorm):
                pairs = [vector for part in op.slices for vector in (part.weight, part.bias)]
                found |= dict.fromkeys(vector for vector in pairs if vector is not None)
        return list(found)

    def biases(self) -> list[RelativeBias]:
        """Every distinct learned bias of attention scores, in first-use order."""
        used = [op.bias for op in self.ops if isinstance(op, Attention)]
        return list(dict.fromkeys(bias for bias in used if isinstance(bias, RelativeBias)))

    def sources(self) -> list[Source]:
        """Every checkpoint tensor the program reads: no constants, and of what is derived that which it comes from."""
        found: dict[Source, None] = {}
        for matrix in self.matrices():
            found |= dict.fromkeys((*matrix.sources, *matrix.bias))
        found |= dict.fromkeys(vector.source for vector in self.vectors())
        found |= dict.fromkeys(bias.source for bias in self.biases())
        for derived in self.derived.values():
            found |= dict.fromkeys(derived.inputs)
        return [source for source in found if source.name not in self.constants and source.name not in self.derived]
