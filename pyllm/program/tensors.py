"""What operations work on: buffers, weights and where they come from, biases of attention scores. Data only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rows = Literal["T", "R"]


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
    `optional`: zeros where the checkpoint has no such tensor (a bias that some exporters left out).
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    begin: int = 0
    end: int = 0
    optional: bool = False


@dataclass(frozen=True)
class Derived:
    """A tensor computed once, at load, from tensors of the checkpoint: compute(arrays of `inputs`, float32, each as its
    Source takes it) -> float32."""

    inputs: tuple[Source, ...]
    compute: Callable[[list[NDArray[np.float32]]], NDArray[np.float32]]


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
    """A float32 vector [n]: (checkpoint tensor + offset) * scale, folded at load (Gemma's 1 + weight; a factor that
    follows a norm)."""

    name: str
    shape: tuple[int]
    source: Source
    offset: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias of attention scores by distance: score[h, query, key] += table[buckets[key - query - first], h].

    source is the table [num_buckets, num_heads]; distances before the first or after the last entry of `buckets` take
    that of the end (T5, MPNet: buckets saturate, so a finite list says it all).
    """

    source: Source
    buckets: tuple[int, ...]
    first: int

    @property
    def num_heads(self) -> int:
        """Columns of the table."""
        return self.source.shape[1]

    @property
    def zero(self) -> int:
        """Index in `buckets` of distance 0."""
        return -self.first

    def expand(self, table: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [num_heads, len(buckets)] from the table [num_buckets, num_heads]."""
        return np.ascontiguousarray(np.asarray(table, np.float32)[list(self.buckets)].T)


@dataclass(frozen=True)
class Alibi:
    """A linear bias: score[h, query, key] += slopes[h] * (key - query) (Press et al. 2022). Softmax does not see the
    difference from slopes[h] * key, which some implementations add."""

    slopes: tuple[float, ...]

    @property
    def num_heads(self) -> int:
        """One slope a head."""
        return len(self.slopes)


@dataclass(frozen=True)
class Disentangled:
    """A bias that depends on content and distance (DeBERTa; He et al. 2021), for attention that is not causal.

    Both index lists are for the distances key - query = first, first + 1, ...; beyond either end that end counts. With
    d the place of a distance in them: score[h, query, key] += c2p[query, h * span + c2p_index[d]]
    + p2c[key, h * span + p2c_index[d]]. c2p and p2c are [T, num_heads * span], or None for no such term.
    """

    c2p: Buffer | None
    p2c: Buffer | None
    num_heads: int
    span: int
    first: int
    c2p_index: tuple[int, ...]
    p2c_index: tuple[int, ...]
