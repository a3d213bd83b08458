"""The recorded network: buffers, weights and a straight list of operations. Data only; no recording, no running.

Rows: every buffer is [rows, cols] float32 where rows is "T" (tokens of this step) or "R" (rows that want logits).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Rows = Literal["T", "R"]
ActivationName = Literal["none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]


@dataclass(frozen=True)
class Buffer:
    """A named intermediate, float32 [rows, cols]."""

    name: str
    rows: Rows
    cols: int


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint.

    `shape` is what the checkpoint must hold. `transposed`: stored [in, out] (GPT-2's Conv1D), so the
    matrix used is its transpose. `begin`, `end`: rows of the (transposed) tensor that are taken; end 0 means all.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Matrix:
    """Weights [N, K] of a linear or embedding op: `sources` joined along N; `bias` sources joined likewise.

    gated: exactly two sources of equal N (gate, up) which are interleaved in blocks of 16 rows when packed
    (each padded to a multiple of 16), so that the activation product needs no second pass.
    """

    name: str
    shape: tuple[int, int]
    sources: tuple[Source, ...]
    bias: tuple[Source, ...] = ()
    gated: bool = False


@dataclass(frozen=True)
class Vector:
    """A float32 vector [n] from the checkpoint, plus a constant folded in at load (Gemma's 1 + weight)."""

    name: str
    shape: tuple[int]
    source: Source
    offset: float = 0.0


@dataclass(frozen=True)
class Embed:
    """out[t] = scale * table[ids[t]] (+ positions[position[t] + position_offset])."""

    out: Buffer
    table: Matrix
    positions: Matrix | None = None
    position_offset: int = 0
    scale: float = 1.0


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
    """Layer norm (bias may be None) or RMS norm of each row."""

    out: Buffer
    x: Buffer
    kind: Literal["layer", "rms"]
    weight: Vector
    bias: Vector | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """out = residual + activation(x @ W.T + bias); gated: activation(gate) * up with W = [gate; up]."""

    out: Buffer
    x: Buffer
    weight: Matrix
    activation: ActivationName = "none"
    residual: Buffer | None = None


@dataclass(frozen=True)
class Attention:
    """Rotates q and k (when `rope` is given), appends k and v to cache `layer`, and attends causally.

    qkv is [T, (num_heads + 2 * num_kv_heads) * head_dim]: all query heads, then key heads, then value heads.
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


@dataclass(frozen=True)
class Select:
    """out[r] = x[logit_rows[r]]: only the rows that want logits go on."""

    out: Buffer
    x: Buffer


Op = Embed | Rotary | Norm | Linear | Attention | Select


@dataclass(frozen=True)
class Program:
    """A decoder network as a list of ops; `logits` ([R, V]) is the last linear's output."""

    family: str
    ops: tuple[Op, ...]
    logits: Buffer
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    ignored: tuple[str, ...] = field(default=())  # regular expressions of checkpoint names that are no weights
    aliases: tuple[tuple[str, str], ...] = field(default=())  # (a, b): tensor a may be stored as b, or as both if equal

    def __str__(self) -> str:
        from pyllm.program.listing import listing

        return listing(self)

    def matrices(self) -> list[Matrix]:
        """Every distinct matrix, in first-use order (a tied head appears once)."""
        found: dict[Matrix, None] = {}
        for op in self.ops:
            if isinstance(op, Embed):
                found[op.table] = None
                if op.positions is not None:
                    found[op.positions] = None
            elif isinstance(op, Linear):
                found[op.weight] = None
        return list(found)

    def vectors(self) -> list[Vector]:
        """Every distinct norm vector, in first-use order."""
        found: dict[Vector, None] = {}
        for op in self.ops:
            if isinstance(op, Norm):
                found[op.weight] = None
                if op.bias is not None:
                    found[op.bias] = None
        return list(found)

    def sources(self) -> list[Source]:
        """Every checkpoint tensor the program reads."""
        found: dict[Source, None] = {}
        for matrix in self.matrices():
            for source in (*matrix.sources, *matrix.bias):
                found[source] = None
        for vector in self.vectors():
            found[vector.source] = None
        return list(found)
