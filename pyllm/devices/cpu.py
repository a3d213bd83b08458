"""The CPU device: lowers a program to the C++ executor, packs its weights, runs batches. All arithmetic is in csrc/."""

from __future__ import annotations

import sys
import weakref
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .. import _C
from ..errors import ArrayError
from ..program.batch import Batch, KvCache
from ..program.program import (
    Attention,
    Buffer,
    Embed,
    Linear,
    Matrix,
    Network,
    Norm,
    Op,
    Program,
    Rotary,
    Select,
    Source,
    StoreCross,
    as_network,
)


class Tensors(Protocol):
    """Where the weights come from: pyllm.models.BoundCheckpoint, or anything like it."""

    def tensor(self, name: str) -> NDArray[Any]:
        """float32, float16, or bfloat16 as uint16, in the shape its Source says."""

    def release(self, name: str) -> None:
        """The tensor's memory will not be read again."""


class CpuRunner:
    """A program on this machine's processors. Threads may share one: steps take turns, caches are independent.

    dtype: "float32", or "bfloat16" for weights, keys, values and the inputs of matmuls; sums are float32 in both.
    num_threads None: PYLLM_NUM_THREADS, OMP_NUM_THREADS, or the cores this process may use. isa None: the best
    instruction set here, or PYLLM_ISA's. progress: a bar on stderr while packing, if it is a terminal.
    Weights are packed matrix by matrix and each tensor is released after its last use.

    Raises ProgramError, InvalidOptionError, DeviceError, OutOfMemoryError.
    """

    def __init__(
        self,
        network: Network | Program,
        tensors: Tensors,
        *,
        dtype: str,
        num_threads: int | None = None,
        isa: str | None = None,
        progress: bool = False,
    ) -> None:
        program = as_network(network).main
        self.program = program
        lowered = _Lowering(program, dtype)
        self._executor = _C.Executor(lowered.program, num_threads, isa)
        self._caches: weakref.WeakSet[_C.KvCache] = weakref.WeakSet()
        _load(self._executor, lowered, tensors, progress)

    @property
    def vocab_size(self) -> int:
        return self.program.vocab_size

    @property
    def max_positions(self) -> int:
        return self.program.max_positions

    @property
    def num_threads(self) -> int:
        return self._executor.num_threads

    @property
    def isa(self) -> str:
        """The instruction set in use: "scalar", "avx2", "avx512" or "amx"."""
        return self._executor.isa

    def new_cache(self, program: str = "step", max_bytes: int = 0) -> _C.KvCache:
        """An empty cache; max_bytes 0: as large as memory allows."""
        cache = self._executor.new_cache(max_bytes)
        self._caches.add(cache)
        return cache

    def run(self, batch: Batch, cache: KvCache) -> NDArray[np.float32]:
        """One step; logits float32 [R, V], a view of the cache's buffer, which the cache's next step overwrites.

        Raises PromptError (ids), ContextLengthError (positions), ArrayError (anything else wrong with the batch) and
        OutOfMemoryError; the cache's content is then unchanged.
        """
        if not isinstance(cache, _C.KvCache):
            raise ArrayError(f"[run] the cache must come from this runner's new_cache(), got {type(cache).__name__}")
        return self._executor.run(
            batch.ids, batch.positions, batch.starts, batch.context, batch.block_table, batch.logit_rows, cache
        )

    def memory_report(self) -> dict[str, int]:
        """Bytes held: weights, activations and scratch of a step, key/value caches; and how much of all that huge
        pages back at this moment."""
        held = self._executor.memory()
        caches = list(self._caches)
        report = {name: size for name, (size, _) in held.items()}
        report["key_value_cache"] = sum(cache.bytes for cache in caches)
        report["of_it_on_huge_pages"] = sum(huge for _, huge in held.values()) + sum(c.huge_bytes for c in caches)
        return report


class _Lowering:
    """The program as the core takes it, and the ids it gave to matrices and vectors."""

    def __init__(self, program: Program, dtype: str) -> None:
        self.program = _C.Program(
            dtype=dtype,
            num_layers=program.num_layers,
            num_kv_heads=program.num_kv_heads,
            head_dim=program.head_dim,
            vocab_size=program.vocab_size,
            max_positions=program.max_positions,
        )
        self._buffers: dict[str, int] = {}
        multiplied = {op.weight for op in program.ops if isinstance(op, Linear)}
        self.matrices = {matrix: self._matrix(matrix, matrix in multiplied) for matrix in program.matrices()}
        self.vectors = {vector: self.program.add_vector(vector.shape[0]) for vector in program.vectors()}
        for op in program.ops:
            self._op(op)
        self.program.set_logits(self._buffer(program.output))

    def _matrix(self, matrix: Matrix, packed: bool) -> int:
        """Tables that are only looked up stay plain rows; a table that is also a head exists in packed form only."""
        parts = [_rows(source) for source in matrix.sources]
        return self.program.add_matrix(
            matrix.name, parts, matrix.shape[1], gated=matrix.gated, packed=packed, bias=bool(matrix.bias)
        )

    def _buffer(self, buffer: Buffer | None) -> int:
        if buffer is None:
            return -1
        if buffer.name not in self._buffers:
            self._buffers[buffer.name] = self.program.add_buffer(buffer.rows == "R", buffer.cols)
        return self._buffers[buffer.name]

    def _op(self, op: Op) -> None:
        if isinstance(op, StoreCross):
            return
        out = self._buffer(op.out)
        if isinstance(op, Embed):
            positions = -1 if op.positions is None else self.matrices[op.positions]
            self.program.embed(out, self.matrices[op.table], positions, op.position_offset, op.scale)
        elif isinstance(op, Rotary):
            self.program.rotary(out, list(op.inv_freq), op.scaling)
        elif isinstance(op, Norm):
            bias = -1 if op.bias is None else self.vectors[op.bias]
            self.program.norm(out, self._buffer(op.x), op.kind == "rms", self.vectors[op.weight], bias, op.eps)
        elif isinstance(op, Linear):
            residual = self._buffer(op.residual)
            self.program.linear(out, self._buffer(op.x), self.matrices[op.weight], op.activation, residual)
        elif isinstance(op, Attention):
            self.program.attention(
                out,
                self._buffer(op.qkv),
                op.layer,
                op.num_heads,
                self._buffer(op.rope),
                op.scale,
                op.rope_interleaved,
                op.window,
                op.softcap,
            )
        elif isinstance(op, Select):
            self.program.select(out, self._buffer(op.x))


def _load(executor: _C.Executor, lowered: _Lowering, tensors: Tensors, progress: bool) -> None:
    """Packs everything, one matrix at a time, so that at most one tensor is in memory beside the packed weights."""
    uses: dict[str, int] = {}
    for matrix in lowered.matrices:
        for source in (*matrix.sources, *matrix.bias):
            uses[source.name] = uses.get(source.name, 0) + 1
    for vector in lowered.vectors:
        uses[vector.source.name] = uses.get(vector.source.name, 0) + 1

    def done(source: Source) -> None:
        uses[source.name] -= 1
        if uses[source.name] == 0:
            tensors.release(source.name)

    hidden = not (progress and sys.stderr.isatty())
    for matrix, index in tqdm(lowered.matrices.items(), desc="packing weights", unit="matrix", disable=hidden):
        parts = [_taken(tensors, source) for source in matrix.sources]
        if len({part.dtype for part in parts}) > 1:
            parts = [_float32(part) for part in parts]
        executor.pack(index, parts, [_float32(_taken(tensors, source)) for source in matrix.bias])
        del parts
        for source in (*matrix.sources, *matrix.bias):
            done(source)
    for vector, index in lowered.vectors.items():
        executor.set_vector(index, _float32(_taken(tensors, vector.source)) + np.float32(vector.offset))
        done(vector.source)


def _rows(source: Source) -> int:
    """Rows of the matrix that a source contributes."""
    rows = source.shape[1] if source.transposed else source.shape[0]
    return (source.end or rows) - source.begin


def _taken(tensors: Tensors, source: Source) -> NDArray[Any]:
    """The part of a tensor that a source takes, as a view; a copy only where the file holds it misaligned."""
    array = tensors.tensor(source.name)
    array = (array.T if source.transposed else array)[source.begin : source.end or None]
    return array if array.flags.aligned else array.copy()


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """From float32, float16, or bfloat16 bits in uint16; C-contiguous."""
    if array.dtype == np.uint16:
        return cast("NDArray[np.float32]", (array.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return np.ascontiguousarray(array, dtype=np.float32)
