"""Runs any program on NumPy from the float64 definitions in reference.py: the specification, the debugger, the oracle.

Holds the weights and the paged key/value arrays; block ids are the caller's matter (devices/reference.py counts them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import reference
from .batch import BLOCK_TOKENS, Batch
from .program import Attention, Embed, Linear, Matrix, Norm, Op, Program, Rotary, Select, Source, Vector
from .reference import Array


class Tensors(Protocol):
    """Named checkpoint tensors (pyllm.models.BoundCheckpoint)."""

    def tensor(self, name: str) -> NDArray[np.generic]:
        """The array as stored; bfloat16 as uint16."""

    def dtype(self, name: str) -> str:
        """Its type as safetensors names it: "F32", "F16", "BF16", "F64"."""


def widen(array: NDArray[np.generic], stored: str) -> Array:
    """Any stored tensor as float64; `stored` tells bfloat16 (held as uint16) from the rest."""
    if stored == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


class KeyValues:
    """Keys and values of every layer, [blocks, 32, K, E] each, indexed by block id; grows as ids grow."""

    def __init__(self, program: Program) -> None:
        self._shape = (BLOCK_TOKENS, program.num_kv_heads, program.head_dim)
        self._keys = [np.zeros((0, *self._shape)) for _ in range(program.num_layers)]
        self._values = [np.zeros((0, *self._shape)) for _ in range(program.num_layers)]

    def copy(self, source: int, target: int) -> None:
        """Block `target` gets the content of block `source`, in every layer."""
        self._reserve(max(source, target) + 1)
        for layer in (*self._keys, *self._values):
            layer[target] = layer[source]

    def append(self, layer: int, blocks: NDArray[np.int32], first: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Writes k and v [T, K, E] of positions from `first` on; returns all so far, [first + T, K, E] each."""
        end = first + len(k)
        used = blocks[: -(-end // BLOCK_TOKENS)]
        self._reserve(int(used.max()) + 1)
        positions = np.arange(first, end)
        slots = (used[positions // BLOCK_TOKENS], positions % BLOCK_TOKENS)
        self._keys[layer][slots] = k
        self._values[layer][slots] = v
        shape = (-1, *self._shape[1:])
        return self._keys[layer][used].reshape(shape)[:end], self._values[layer][used].reshape(shape)[:end]

    def _reserve(self, blocks: int) -> None:
        have = len(self._keys[0])
        if blocks > have:
            more = np.zeros((max(blocks, 2 * have) - have, *self._shape))
            self._keys = [np.concatenate([layer, more]) for layer in self._keys]
            self._values = [np.concatenate([layer, more]) for layer in self._values]


class Interpreter:
    """One program over one set of tensors. `bfloat16`: with the roundings of a bfloat16 model (reference.py)."""

    def __init__(self, program: Program, tensors: Tensors, *, bfloat16: bool = False) -> None:
        self.program = program
        self.bfloat16 = bfloat16
        self._matrices: dict[Matrix, Array] = {}
        self._biases: dict[Matrix, Array | None] = {}
        self._vectors: dict[Vector, Array] = {}
        for matrix in program.matrices():
            weight = np.concatenate([_part(source, tensors) for source in matrix.sources])
            self._matrices[matrix] = reference.round_bf16(weight) if bfloat16 else weight
            parts = [_part(source, tensors) for source in matrix.bias]
            self._biases[matrix] = np.concatenate(parts) if parts else None
        for vector in program.vectors():
            self._vectors[vector] = _part(vector.source, tensors) + vector.offset

    def forward(self, ids: Sequence[int]) -> tuple[Array, dict[str, Array]]:
        """Logits [T, V] of one whole sequence, and every named buffer as it was computed."""
        tokens = len(ids)
        rows = np.arange(tokens, dtype=np.int32)
        blocks = np.arange(-(-tokens // BLOCK_TOKENS), dtype=np.int32)
        ends = np.array([0, tokens], np.int32)
        batch = Batch(np.array(ids, np.int32), rows, ends, ends[1:], blocks[None, :], rows)
        trace = self.run(batch, KeyValues(self.program))
        return trace[self.program.logits.name], trace

    def run(self, batch: Batch, key_values: KeyValues) -> dict[str, Array]:
        """One step: every named buffer [rows, cols]; keys and values are appended to `key_values`."""
        trace: dict[str, Array] = {}
        for op in self.program.ops:
            trace[op.out.name] = self._apply(op, trace, batch, key_values)
        return trace

    def _apply(self, op: Op, trace: dict[str, Array], batch: Batch, key_values: KeyValues) -> Array:
        if isinstance(op, Embed):
            return self._embed(op, batch)
        if isinstance(op, Rotary):
            return reference.rotary(batch.positions, op.inv_freq, op.scaling)
        if isinstance(op, Norm):
            return self._norm(op, trace[op.x.name])
        if isinstance(op, Linear):
            return self._linear(op, trace)
        if isinstance(op, Attention):
            return self._attention(op, trace, batch, key_values)
        assert isinstance(op, Select)
        return trace[op.x.name][batch.logit_rows]

    def _embed(self, op: Embed, batch: Batch) -> Array:
        return reference.embed(
            batch.ids,
            self._matrices[op.table],
            positions=batch.positions,
            position_table=None if op.positions is None else self._matrices[op.positions],
            position_offset=op.position_offset,
            scale=op.scale,
        )

    def _norm(self, op: Norm, x: Array) -> Array:
        weight = self._vectors[op.weight]
        if op.kind == "rms":
            return reference.rms_norm(x, weight, op.eps)
        return reference.layer_norm(x, weight, None if op.bias is None else self._vectors[op.bias], op.eps)

    def _linear(self, op: Linear, trace: dict[str, Array]) -> Array:
        return reference.linear(
            trace[op.x.name],
            self._matrices[op.weight],
            self._biases[op.weight],
            act=op.activation,
            gated=op.weight.gated,
            residual=None if op.residual is None else trace[op.residual.name],
            bfloat16=self.bfloat16,
        )

    def _attention(self, op: Attention, trace: dict[str, Array], batch: Batch, key_values: KeyValues) -> Array:
        heads = trace[op.qkv.name].reshape(len(batch.ids), -1, op.head_dim)
        q, k, v = np.split(heads, [op.num_heads, op.num_heads + op.num_kv_heads], axis=1)
        if op.rope is not None:
            table = trace[op.rope.name]
            q = reference.rope(q, table, interleaved=op.rope_interleaved)
            k = reference.rope(k, table, interleaved=op.rope_interleaved)
        out = np.empty_like(q)
        for sequence, blocks in enumerate(batch.block_table):
            rows = slice(batch.starts[sequence], batch.starts[sequence + 1])
            if rows.start == rows.stop:
                continue
            first = int(batch.positions[rows.start])
            keys, values = key_values.append(op.layer, blocks, first, k[rows], v[rows])
            out[rows] = reference.attention(
                q[rows],
                keys,
                values,
                scale=op.scale,
                window=op.window,
                softcap=op.softcap,
                bfloat16=self.bfloat16,
            )
        return out.reshape(len(batch.ids), op.num_heads * op.head_dim)


def _part(source: Source, tensors: Tensors) -> Array:
    """The rows that a source takes of its tensor, as float64."""
    array = widen(tensors.tensor(source.name), tensors.dtype(source.name))
    array = array.T if source.transposed else array
    return array[source.begin : source.end or None]
