"""Runs any program on NumPy from the float64 definitions in reference.py: the specification, the debugger, the oracle.

Holds the weights and the paged key/value arrays; block ids are the caller's matter (devices/reference.py counts them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import reference
from .batch import BLOCK_TOKENS, Batch
from .program import (
    Attention,
    BufferOp,
    CrossAttention,
    Embed,
    Experts,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    Program,
    Rotary,
    Select,
    StoreCross,
)
from .reference import Array
from .tensors import Alibi, Disentangled, Matrix, RelativeBias, Source, Vector


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

    def __init__(self, layers: int, num_kv_heads: int, head_dim: int) -> None:
        self._shape = (BLOCK_TOKENS, num_kv_heads, head_dim)
        self._keys = [np.zeros((0, *self._shape)) for _ in range(layers)]
        self._values = [np.zeros((0, *self._shape)) for _ in range(layers)]

    @classmethod
    def of(cls, program: Program) -> KeyValues:
        """For a program's own keys and values."""
        return cls(program.num_layers, program.num_kv_heads, program.head_dim)

    @classmethod
    def cross(cls, program: Program) -> KeyValues:
        """For those of its sources."""
        return cls(program.cross_layers, program.cross_kv_heads, program.cross_head_dim)

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
        return self.read(layer, blocks, end)

    def read(self, layer: int, blocks: NDArray[np.int32], end: int) -> tuple[Array, Array]:
        """Keys and values of positions [0, end), [end, K, E] each."""
        used = blocks[: -(-end // BLOCK_TOKENS)]
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
        self._matrix_biases: dict[Matrix, Array | None] = {}
        self._vectors: dict[Vector, Array] = {}
        for matrix in program.matrices():
            weight = np.concatenate([_part(source, tensors) for source in matrix.sources])
            self._matrices[matrix] = reference.round_bf16(weight) if bfloat16 else weight
            parts = [_part(source, tensors).ravel() for source in matrix.bias]
            self._matrix_biases[matrix] = np.concatenate(parts) if parts else None
        for vector in program.vectors():
            self._vectors[vector] = (_part(vector.source, tensors) + vector.offset) * vector.scale
        self._biases = {bias: bias.expand(_part(bias.source, tensors)) for bias in program.biases()}

    def forward(self, ids: Sequence[int]) -> tuple[Array, dict[str, Array]]:
        """Output [T, n] of one whole sequence, and every named buffer as it was computed."""
        tokens = len(ids)
        rows = np.arange(tokens, dtype=np.int32)
        blocks = np.arange(-(-tokens // BLOCK_TOKENS), dtype=np.int32)
        ends = np.array([0, tokens], np.int32)
        batch = Batch(np.array(ids, np.int32), rows, ends, ends[1:], blocks[None, :], rows)
        trace = self.run(batch, KeyValues.of(self.program))
        return trace[self.program.output.name], trace

    def run(
        self,
        batch: Batch,
        key_values: KeyValues,
        cross: KeyValues | None = None,
        weights: dict[str, list[Array]] | None = None,
    ) -> dict[str, Array]:
        """One step: every named buffer [rows, cols]. Keys and values are appended to `key_values`, an encoder's for its
        decoder to `cross`. weights: gets the attention weights [H, rows, keys] of each sequence by output name."""
        trace: dict[str, Array] = {}
        for op in self.program.ops:
            if isinstance(op, StoreCross):
                self._store_cross(op, trace, batch, cross)
            else:
                trace[op.out.name] = self._apply(op, trace, batch, key_values, cross, weights)
        return trace

    def _apply(
        self,
        op: BufferOp,
        trace: dict[str, Array],
        batch: Batch,
        key_values: KeyValues,
        cross: KeyValues | None,
        weights: dict[str, list[Array]] | None,
    ) -> Array:
        if isinstance(op, Embed):
            return self._embed(op, batch)
        if isinstance(op, Rotary):
            return reference.rotary(batch.positions, op.inv_freq, op.scaling)
        if isinstance(op, Norm):
            y = self._norm(op, trace[op.x.name])
            return y if op.residual is None else trace[op.residual.name] + y
        if isinstance(op, HeadNorm):
            return self._head_norm(op, trace[op.x.name])
        if isinstance(op, Linear):
            return self._linear(op, trace)
        if isinstance(op, HeadLinear):
            return self._head_linear(op, trace[op.x.name])
        if isinstance(op, Experts):
            return self._experts(op, trace)
        if isinstance(op, Attention):
            return self._attention(op, trace, batch, key_values, weights)
        if isinstance(op, CrossAttention):
            return self._cross_attention(op, trace, batch, cross, weights)
        assert isinstance(op, Select)
        return trace[op.x.name][batch.logit_rows]

    def _embed(self, op: Embed, batch: Batch) -> Array:
        types = np.zeros(len(batch.ids), np.int32) if batch.token_types is None else batch.token_types
        return reference.embed(
            batch.ids if op.index == "ids" else batch.positions + op.position_offset,
            self._matrices[op.table],
            positions=batch.positions,
            position_table=None if op.positions is None else self._matrices[op.positions],
            position_offset=op.position_offset,
            scale=op.scale,
            types=types,
            type_table=None if op.types is None else self._matrices[op.types],
        )

    def _norm(self, op: Norm, x: Array) -> Array:
        bias = None if op.bias is None else self._vectors[op.bias]
        return _normalised(op.kind, x, self._vectors[op.weight], bias, op.eps)

    def _head_norm(self, op: HeadNorm, x: Array) -> Array:
        out: Array = x.copy()
        for part in op.slices:
            columns = slice(part.begin, part.begin + part.count * part.width)
            groups = x[:, columns].reshape(len(x), part.count, part.width)
            shape = (-1, part.width)  # one row for all groups, or one for each
            weight = self._vectors[part.weight].reshape(shape)
            bias = None if part.bias is None else self._vectors[part.bias].reshape(shape)
            out[:, columns] = _normalised(op.kind, groups, weight, bias, op.eps).reshape(len(x), -1)
        return out

    def _linear(self, op: Linear, trace: dict[str, Array]) -> Array:
        return reference.linear(
            trace[op.x.name],
            self._matrices[op.weight],
            self._matrix_biases[op.weight],
            act=op.activation,
            gated=op.weight.gated,
            residual=None if op.residual is None else trace[op.residual.name],
            scale=op.scale,
            softcap=op.softcap,
            bfloat16=self.bfloat16,
        )

    def _head_linear(self, op: HeadLinear, x: Array) -> Array:
        heads = np.split(x[:, op.begin : op.begin + len(op.weights) * op.weights[0].shape[1]], len(op.weights), axis=1)
        return np.concatenate(
            [
                reference.linear(head, self._matrices[weight], self._matrix_biases[weight], bfloat16=self.bfloat16)
                for head, weight in zip(heads, op.weights, strict=True)
            ],
            axis=1,
        )

    def _experts(self, op: Experts, trace: dict[str, Array]) -> Array:
        x, logits = trace[op.x.name], trace[op.router.name]
        weights = reference.route(logits[:, : len(op.gate_up)], op.top_k, normalize=op.normalize)
        pairs = list(zip(op.gate_up, op.down, strict=True))
        if op.shared is not None:
            pairs.append(op.shared)
            weights = np.concatenate([weights, 1 / (1 + np.exp(-logits[:, -1:]))], axis=1)
        out = np.zeros_like(x) if op.residual is None else trace[op.residual.name].copy()
        for index, (gate_up, down) in enumerate(pairs):
            rows = np.flatnonzero(weights[:, index])
            y = x[rows]
            for matrix, act in ((gate_up, op.activation), (down, "none")):
                y = reference.linear(
                    y,
                    self._matrices[matrix],
                    self._matrix_biases[matrix],
                    act=act,
                    gated=matrix.gated,
                    bfloat16=self.bfloat16,
                )
            out[rows] += weights[rows, index, None] * y
        return out

    def _attention(
        self,
        op: Attention,
        trace: dict[str, Array],
        batch: Batch,
        key_values: KeyValues,
        weights: dict[str, list[Array]] | None,
    ) -> Array:
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
            options: dict[str, Any] = {
                "scale": op.scale,
                "causal": op.causal,
                "window": op.window,
                "softcap": op.softcap,
            }
            if isinstance(op.bias, Disentangled):
                options["bias"] = _disentangled(op.bias, trace, rows)
            else:
                options["bias"] = self._bias(op.bias, len(keys), rows.stop - rows.start)
            options["bfloat16"] = self.bfloat16
            out[rows] = reference.attention(q[rows], keys, values, **options)
            self._note_weights(op.out.name, weights, q[rows], keys, options)
        return out.reshape(len(batch.ids), op.num_heads * op.head_dim)

    def _bias(self, bias: RelativeBias | Alibi | None, context: int, tokens: int) -> Array | None:
        """[H, tokens, context] for the last `tokens` of `context` positions."""
        if bias is None:
            return None
        distance = np.arange(context)[None, :] - np.arange(context - tokens, context)[:, None]
        if isinstance(bias, Alibi):
            return np.asarray(np.asarray(bias.slopes, np.float64)[:, None, None] * distance)
        index = np.clip(distance - bias.first, 0, len(bias.buckets) - 1)
        return np.asarray(self._biases[bias][:, index], np.float64)

    def _store_cross(self, op: StoreCross, trace: dict[str, Array], batch: Batch, cross: KeyValues | None) -> None:
        if cross is None or batch.cross_table is None:
            return
        heads = trace[op.kv.name].reshape(len(batch.ids), -1, op.head_dim)
        for sequence, blocks in enumerate(batch.cross_table):
            rows = slice(batch.starts[sequence], batch.starts[sequence + 1])
            first = int(batch.positions[rows.start])
            cross.append(op.layer, blocks, first, heads[rows, : op.num_kv_heads], heads[rows, op.num_kv_heads :])

    def _cross_attention(
        self,
        op: CrossAttention,
        trace: dict[str, Array],
        batch: Batch,
        cross: KeyValues | None,
        weights: dict[str, list[Array]] | None,
    ) -> Array:
        assert cross is not None
        assert batch.cross_table is not None
        assert batch.cross_context is not None
        q = trace[op.q.name].reshape(len(batch.ids), op.num_heads, op.head_dim)
        out = np.empty_like(q)
        options: dict[str, Any] = {"scale": op.scale, "causal": False, "bfloat16": self.bfloat16}
        for sequence, blocks in enumerate(batch.cross_table):
            rows = slice(batch.starts[sequence], batch.starts[sequence + 1])
            keys, values = cross.read(op.layer, blocks, int(batch.cross_context[sequence]))
            out[rows] = reference.attention(q[rows], keys, values, **options)
            self._note_weights(op.out.name, weights, q[rows], keys, options)
        return out.reshape(len(batch.ids), op.num_heads * op.head_dim)

    @staticmethod
    def _note_weights(
        name: str, weights: dict[str, list[Array]] | None, q: Array, keys: Array, options: dict[str, Any]
    ) -> None:
        if weights is not None:
            p = reference.attention_weights(q, keys, **options)
            weights.setdefault(name, []).append(p / p.sum(-1, keepdims=True))


def _disentangled(bias: Disentangled, trace: dict[str, Array], rows: slice) -> Array:
    """[H, T, T] of one sequence."""
    tokens = np.arange(rows.stop - rows.start)
    distance = tokens[None, :] - tokens[:, None]  # [query, key]
    place = np.clip(distance - bias.first, 0, len(bias.c2p_index) - 1)
    total = np.zeros((bias.num_heads, len(tokens), len(tokens)))
    if bias.c2p is not None:
        by_query = trace[bias.c2p.name][rows].reshape(len(tokens), bias.num_heads, bias.span).transpose(1, 0, 2)
        total += by_query[:, tokens[:, None], np.asarray(bias.c2p_index)[place]]
    if bias.p2c is not None:
        by_key = trace[bias.p2c.name][rows].reshape(len(tokens), bias.num_heads, bias.span).transpose(1, 0, 2)
        total += by_key[:, tokens[None, :], np.asarray(bias.p2c_index)[place]]
    return total


def _normalised(kind: str, x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    if kind == "rms":
        return reference.rms_norm(x, weight, eps)
    return reference.layer_norm(x, weight, bias, eps)


def _part(source: Source, tensors: Tensors) -> Array:
    """The rows that a source takes of its tensor, as float64."""
    array = widen(tensors.tensor(source.name), tensors.dtype(source.name))
    array = array.T if source.transposed else array
    return array[source.begin : source.end or None]
