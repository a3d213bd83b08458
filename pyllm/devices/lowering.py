"""Lowers a network to the C++ core's program: routines over one set of matrices and vectors, and the ids they got."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from .. import _C
from ..checkpoint.codes import Kind
from ..errors import ArrayError
from ..program.network import Network
from ..program.program import (
    Attention,
    CrossAttention,
    Embed,
    Experts,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    Op,
    Program,
    Rotary,
    Select,
    StoreCross,
)
from ..program.tensors import Alibi, Buffer, Disentangled, Matrix, RelativeBias, Source, Vector
from .formats import BITS, choose_all, plain_dtype


class Lowering:
    """A network as the core takes it. What both programs use (equal matrices, vectors, biases) is there once.

    matrices, vectors, biases   ids in the core; a bias is a vector [num_heads * len(buckets)]
    chosen                      format of each matrix
    kv_cache                    format of keys and values
    routines                    programs by name -> their ids and the ids of their buffers
    """

    def __init__(
        self,
        network: Network,
        dtype: str,
        quantization: str | None = None,
        kv_cache: str | None = None,
        kind: Callable[[str], Kind | None] | None = None,
    ) -> None:
        """kind: how the checkpoint has quantised a tensor. kv_cache None: as dtype."""
        programs = list(network.programs.values())
        main = network.main
        self.kv_cache = kv_cache or plain_dtype(dtype)
        self._asked = quantization
        self.program = _C.Program(
            kv_cache=self.kv_cache,
            cross_layers=main.cross_layers,
            cross_kv_heads=main.cross_kv_heads,
            cross_head_dim=main.cross_head_dim,
        )
        multiplied = {matrix for program in programs for matrix in _multiplied(program)}
        self.chosen = choose_all(network, dtype, quantization, kind)
        self.matrices = {matrix: self._matrix(matrix, matrix in multiplied) for matrix in self.chosen}
        vectors = dict.fromkeys(vector for program in programs for vector in program.vectors())
        self.vectors = {vector: self.program.add_vector(vector.shape[0]) for vector in vectors}
        biases = dict.fromkeys(bias for program in programs for bias in program.biases())
        self.biases = {bias: self.program.add_vector(bias.num_heads * len(bias.buckets)) for bias in biases}
        self.routines = {name: self._routine(name, program) for name, program in network.programs.items()}

    @property
    def recipe(self) -> list[object]:
        """All that decides what the packed weights are, but for the tensors' values."""
        return [*self.chosen.items(), *self.vectors, *self.biases]

    @property
    def formats(self) -> dict[str, int]:
        """Weights in each format, those that the most weights have first."""
        weights: Counter[str] = Counter()
        for matrix, chosen in self.chosen.items():
            weights[chosen.format] += prod(matrix.shape)
        return dict(weights.most_common())

    @property
    def quantization(self) -> str | None:
        """What was asked for, or the quantised format of most weights; None: there is none."""
        return self._asked or next((name for name in self.formats if BITS[name] < 16), None)

    @property
    def inexact(self) -> dict[tuple[str, str], int]:
        """(how the checkpoint has them, the format they get) -> number of matrices that are quantised again."""
        return dict(Counter((each.inexact, each.format) for each in self.chosen.values() if each.inexact))

    def _matrix(self, matrix: Matrix, packed: bool) -> int:
        """Tables that are only looked up stay plain rows; a table that is also a head exists in packed form only."""
        parts = [rows_of(source) for source in matrix.sources]
        return self.program.add_matrix(
            matrix.name,
            parts,
            matrix.shape[1],
            dtype=self.chosen[matrix].format,
            gated=matrix.gated,
            packed=packed,
            bias=bool(matrix.bias),
        )

    def _routine(self, name: str, program: Program) -> Routine:
        index = self.program.begin_routine(
            name,
            num_layers=program.num_layers,
            num_kv_heads=program.num_kv_heads,
            head_dim=program.head_dim,
            vocab_size=program.vocab_size,
            max_positions=program.max_positions,
        )
        routine = Routine(index, self)
        for op in program.ops:
            routine.add(op)
        self.program.set_output(routine.buffer(program.output))
        return routine


class Routine:
    """One program's ops on their way into the core."""

    def __init__(self, index: int, lowering: Lowering) -> None:
        self.index = index
        self.buffers: dict[str, int] = {}  # by name
        self._all = lowering
        self._core = lowering.program

    def buffer(self, buffer: Buffer | None) -> int:
        """Its id, -1 for none."""
        if buffer is None:
            return -1
        if buffer.name not in self.buffers:
            self.buffers[buffer.name] = self._core.add_buffer(buffer.rows == "R", buffer.cols)
        return self.buffers[buffer.name]

    def add(self, op: Op) -> None:
        """Appends one op."""
        if isinstance(op, StoreCross):
            self._core.store_cross(self.buffer(op.kv), op.layer)
            return
        out = self.buffer(op.out)
        if isinstance(op, Embed):
            self._embed(out, op)
        elif isinstance(op, Rotary):
            self._core.rotary(out, list(op.inv_freq), op.scaling)
        elif isinstance(op, Norm):
            rms, weight, bias = op.kind == "rms", self._vector(op.weight), self._vector(op.bias)
            self._core.norm(out, self.buffer(op.x), rms, weight, bias, op.eps, self.buffer(op.residual))
        elif isinstance(op, HeadNorm):
            slices = [
                (part.begin, part.width, part.count, self._vector(part.weight), self._vector(part.bias))
                for part in op.slices
            ]
            self._core.head_norm(out, self.buffer(op.x), op.kind == "rms", slices, op.eps)
        elif isinstance(op, Linear):
            x, residual = self.buffer(op.x), self.buffer(op.residual)
            self._core.linear(out, x, self._matrix(op.weight), op.activation, residual, op.scale, op.softcap)
        elif isinstance(op, HeadLinear):
            self._core.head_linear(out, self.buffer(op.x), op.begin, [self._matrix(weight) for weight in op.weights])
        elif isinstance(op, Experts):
            self._experts(out, op)
        elif isinstance(op, Attention):
            self._attention(out, op)
        elif isinstance(op, CrossAttention):
            self._core.cross_attention(out, self.buffer(op.q), op.layer, op.num_heads, op.scale)
        else:
            assert isinstance(op, Select)
            self._core.select(out, self.buffer(op.x))

    def _matrix(self, matrix: Matrix | None) -> int:
        return -1 if matrix is None else self._all.matrices[matrix]

    def _vector(self, vector: Vector | None) -> int:
        return -1 if vector is None else self._all.vectors[vector]

    def _embed(self, out: int, op: Embed) -> None:
        self._core.embed(
            out,
            self._matrix(op.table),
            self._matrix(op.positions),
            op.position_offset,
            op.scale,
            self._matrix(op.types),
            op.index == "positions",
        )

    def _experts(self, out: int, op: Experts) -> None:
        shared_gate_up, shared_down = op.shared or (None, None)
        self._core.experts(
            out,
            self.buffer(op.x),
            self.buffer(op.router),
            [self._matrix(matrix) for matrix in op.gate_up],
            [self._matrix(matrix) for matrix in op.down],
            self._matrix(shared_gate_up),
            self._matrix(shared_down),
            op.top_k,
            op.activation,
            op.normalize,
            self.buffer(op.residual),
        )

    def _attention(self, out: int, op: Attention) -> None:
        bias = op.bias
        table, first, span = -1, 0, 0
        content: dict[str, Any] = {}
        if isinstance(bias, RelativeBias):
            table, first, span = self._all.biases[bias], bias.first, len(bias.buckets)
        elif isinstance(bias, Disentangled):
            first, span = bias.first, bias.span
            content = {
                "c2p": self.buffer(bias.c2p),
                "p2c": self.buffer(bias.p2c),
                "c2p_index": list(bias.c2p_index),
                "p2c_index": list(bias.p2c_index),
            }
        self._core.attention(
            out,
            self.buffer(op.qkv),
            op.layer,
            op.num_heads,
            self.buffer(op.rope),
            op.scale,
            op.rope_interleaved,
            op.window,
            op.softcap,
            op.causal,
            table,
            first,
            span,
            list(bias.slopes) if isinstance(bias, Alibi) else [],
            **content,
        )


def wanted_buffers(routine: Routine, names: Iterable[str]) -> dict[str, int]:
    """Ids of buffers by name, each once. Raises ArrayError for names that the program lacks."""
    unknown = [name for name in names if name not in routine.buffers]
    if unknown:
        raise ArrayError(
            f"[capture] buffers are named as the program's listing shows, got {', '.join(map(repr, unknown))}; "
            "print(runner.network) lists them"
        )
    return {name: routine.buffers[name] for name in names}


def warn_inexact(lowered: Lowering, stacklevel: int) -> None:
    """Says which matrices are quantised once more, because no format holds what the checkpoint has."""
    for (stored, packed), count in lowered.inexact.items():
        warnings.warn(
            f"[load] {count} matrices are stored as {stored}, which no packed format holds: they are packed as "
            f"{packed} from their dequantised weights",
            UserWarning,
            stacklevel=stacklevel,
        )


def _multiplied(program: Program) -> list[Matrix]:
    """The matrices of its matmuls."""
    found = [op.weight for op in program.ops if isinstance(op, Linear)]
    found += [weight for op in program.ops if isinstance(op, HeadLinear) for weight in op.weights]
    return found + [matrix for op in program.ops if isinstance(op, Experts) for matrix in op.matrices]


def rows_of(source: Source) -> int:
    """Rows of the matrix that a source contributes."""
    rows = source.shape[1] if source.transposed else source.shape[0]
    return (source.end or rows) - source.begin
