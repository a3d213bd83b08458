"""Recorder: model files call its methods, one an operation, and get a Program. Checks shapes as it goes.

    r = Recorder("gpt2", vocab_size=V, max_positions=P)
    x = r.embed("embed", table, positions=positions)
    for i in range(num_layers):
        with r.layer(i):                       # buffers below are named layer<i>.<name>
            h = r.layer_norm("attn_norm", x, weight, bias, eps)
            ...
    x = r.select("last_rows", x)
    program = r.finish(r.linear("logits", x, head))

Computes nothing, and knows no family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ProgramError
from .program import (
    ActivationName,
    Attention,
    BufferOp,
    CrossAttention,
    Embed,
    Experts,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    NormSlice,
    Op,
    Program,
    Rotary,
    Select,
    StoreCross,
)
from .tensors import Alibi, Buffer, Derived, Disentangled, Matrix, RelativeBias, Rows, Source, Vector


class Recorder:
    """Records one program. Every method but `finish` returns the buffer it writes; raises ProgramError.

    causal: a decoder, whose attention keeps its keys and values from step to step; False: an encoder, which reads a
    whole sequence at once.
    """

    def __init__(self, family: str, *, vocab_size: int, max_positions: int, causal: bool = True) -> None:
        self.family = family
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.causal = causal
        self._ops: list[Op] = []
        self._buffers: dict[str, Buffer] = {}
        self._read: set[str] = set()
        self._layer: int | None = None
        self._caches: list[tuple[int, int]] = []  # (num_kv_heads, head_dim) of each layer's cache
        self._cross: list[tuple[int, int]] = []  # the same of the cross cache
        self._hidden: list[str] = []
        self._constants: dict[str, NDArray[np.float32]] = {}
        self._derived: dict[str, Derived] = {}

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        """Names the buffers of layer `index`, whose attention owns cache `index`."""
        self._layer = index
        yield
        self._layer = None

    def embed(
        self,
        name: str,
        table: Matrix,
        *,
        positions: Matrix | None = None,
        position_offset: int = 0,
        scale: float = 1.0,
        types: Matrix | None = None,
    ) -> Buffer:
        """[T, D] = scale * table[ids] (+ positions[position + position_offset]) (+ types[token_types]); table [V, D],
        positions [P, D], types [segments, D]."""
        _check_matrix(table)
        rows, width = table.shape
        self._require(rows >= self.vocab_size, name, f"table {table.name!r} needs {self.vocab_size} rows, has {rows}")
        if positions is not None:
            _check_matrix(positions)
            need = self.max_positions + position_offset
            problem = f"positions {positions.name!r} must be [{need} or more, {width}], is {list(positions.shape)}"
            self._require(positions.shape[0] >= need and positions.shape[1] == width, name, problem)
        if types is not None:
            _check_matrix(types)
            problem = f"types {types.name!r} must be [segments, {width}], is {list(types.shape)}"
            self._require(types.shape[1] == width, name, problem)
        out = self._new(name, "T", width)
        return self._record(Embed(out, table, positions, position_offset, scale, types))

    def embed_positions(self, name: str, table: Matrix, *, offset: int = 0) -> Buffer:
        """[T, D] = table[position + offset]; table [P, D]. For networks that add positions after the embedding."""
        _check_matrix(table)
        rows, width = table.shape
        need = self.max_positions + offset
        self._require(rows >= need, name, f"table {table.name!r} needs {need} rows, has {rows}")
        return self._record(Embed(self._new(name, "T", width), table, position_offset=offset, index="positions"))

    def constant(self, name: str, values: NDArray[np.float32]) -> Source:
        """A tensor that no checkpoint holds, as a source: float32, any shape."""
        self._constants[name] = np.ascontiguousarray(values, np.float32)
        return Source(name, values.shape)

    def derived(self, name: str, shape: tuple[int, ...], derived: Derived) -> Source:
        """A tensor computed at load from others, as a source."""
        self._derived[name] = derived
        return Source(name, shape)

    def hidden(self, x: Buffer) -> Buffer:
        """Marks x as the next of transformers' `hidden_states`; returns it."""
        self._use(x)
        self._hidden.append(x.name)
        return x

    def rotary(self, name: str, inv_freq: Sequence[float], scaling: float = 1.0) -> Buffer:
        """[T, 2 * len(inv_freq)]: cosines, then sines, of position * inv_freq, times `scaling`."""
        self._require(len(inv_freq) > 0, name, "inv_freq must not be empty")
        out = self._new(name, "T", 2 * len(inv_freq))
        return self._record(Rotary(out, tuple(float(f) for f in inv_freq), scaling))

    def layer_norm(
        self, name: str, x: Buffer, weight: Vector, bias: Vector | None, eps: float, residual: Buffer | None = None
    ) -> Buffer:
        """(x - mean) / sqrt(variance + eps) * weight (+ bias) (+ residual), each row."""
        return self._norm(Norm(self._new(name, x.rows, x.cols), x, "layer", weight, bias, eps, residual))

    def rms_norm(self, name: str, x: Buffer, weight: Vector, eps: float, residual: Buffer | None = None) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight (+ residual), each row."""
        return self._norm(Norm(self._new(name, x.rows, x.cols), x, "rms", weight, None, eps, residual))

    def head_norm(
        self, name: str, x: Buffer, kind: Literal["layer", "rms"], slices: Sequence[NormSlice], eps: float
    ) -> Buffer:
        """x with the groups of columns of each slice normalised (NormSlice); the other columns as they are."""
        for part in slices:
            end = part.begin + part.count * part.width
            self._require(0 <= part.begin < end <= x.cols, name, f"slices lie in {_shape(x)}, got one to column {end}")
            for vector in (part.weight, part.bias):
                if vector is not None:
                    problem = f"{vector.name!r} must have {part.width} elements or {part.count} times that"
                    fits = vector.shape[0] in (part.width, part.width * part.count)
                    self._require(fits, name, f"{problem}, it has {vector.shape[0]}")
        self._use(x)
        return self._record(HeadNorm(self._new(name, x.rows, x.cols), x, kind, tuple(slices), eps))

    def linear(
        self,
        name: str,
        x: Buffer,
        weight: Matrix,
        activation: ActivationName = "none",
        residual: Buffer | None = None,
        *,
        scale: float = 1.0,
        softcap: float = 0.0,
    ) -> Buffer:
        """residual + scale * cap(activation(x @ W.T + bias)); W [N, K]. Gated, W = [gate; up]: act(gate) * up,
        [rows, N / 2]. softcap c > 0: cap(y) = c * tanh(y / c)."""
        _check_matrix(weight)
        outputs, inputs = weight.shape
        self._require(x.cols == inputs, name, f"weight {weight.name!r} takes rows of {inputs}, {_shape(x)} was given")
        out = self._new(name, x.rows, outputs // 2 if weight.gated else outputs)
        if residual is not None:
            fits = (residual.rows, residual.cols) == (out.rows, out.cols)
            self._require(fits, name, f"residual must be [{out.rows}, {out.cols}], {_shape(residual)} was given")
            self._use(residual)
        self._require(softcap == 0 or not weight.gated, name, "a gated linear has no softcap")
        self._use(x)
        return self._record(Linear(out, x, weight, activation, residual, scale, softcap))

    def head_linear(self, name: str, x: Buffer, weights: Sequence[Matrix], *, begin: int = 0) -> Buffer:
        """[rows, H * N]: head h of x, columns [begin + h * E, begin + (h + 1) * E), by weights[h] [N, E]."""
        self._require(len(weights) > 0, name, "there must be a matrix a head")
        outputs, width = weights[0].shape
        for weight in weights:
            _check_matrix(weight)
            fits = weight.shape == (outputs, width) and not weight.gated
            self._require(fits, name, f"weight {weight.name!r} must be [{outputs}, {width}] as the first head's")
        end = begin + len(weights) * width
        problem = f"{len(weights)} heads of {width} from column {begin} on do not lie in {_shape(x)}"
        self._require(begin >= 0 and end <= x.cols, name, problem)
        self._use(x)
        out = self._new(name, x.rows, len(weights) * outputs)
        return self._record(HeadLinear(out, x, begin, tuple(weights)))

    def experts(
        self,
        name: str,
        x: Buffer,
        router: Buffer,
        experts: Sequence[tuple[Matrix, Matrix]],
        *,
        top_k: int,
        activation: ActivationName,
        normalize: bool,
        shared: tuple[Matrix, Matrix] | None = None,
        residual: Buffer | None = None,
    ) -> Buffer:
        """[T, D]: the mixture of `experts`, pairs of gated and down projection, that the logits `router` choose (see
        Experts). shared: an expert of every row, gated by router's last column."""
        count = len(experts) + (shared is not None)
        self._require(router.cols == count, name, f"router must be [T, {count}], {_shape(router)} was given")
        self._require(1 <= top_k <= len(experts), name, f"top_k must be 1 to {len(experts)}, got {top_k}")
        for gate_up, down in [*experts, *([shared] if shared else [])]:
            _check_matrix(gate_up)
            _check_matrix(down)
            fits = gate_up.gated and gate_up.shape[1] == x.cols == down.shape[0]
            self._require(fits and down.shape[1] * 2 == gate_up.shape[0], name, f"expert {gate_up.name!r} does not fit")
        out = self._new(name, x.rows, x.cols)
        if residual is not None:
            fits = (residual.rows, residual.cols) == (out.rows, out.cols)
            self._require(fits, name, f"residual must be [{out.rows}, {out.cols}], {_shape(residual)} was given")
            self._use(residual)
        self._use(x)
        self._use(router)
        gates, downs = (tuple(pair[i] for pair in experts) for i in (0, 1))
        return self._record(Experts(out, x, router, gates, downs, top_k, activation, normalize, shared, residual))

    def attention(
        self,
        name: str,
        qkv: Buffer,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        rope: Buffer | None = None,
        rope_interleaved: bool = False,
        window: int = 0,
        softcap: float = 0.0,
        bias: RelativeBias | Alibi | Disentangled | None = None,
    ) -> Buffer:
        """[T, num_heads * head_dim] from qkv [T, (num_heads + 2 * num_kv_heads) * head_dim]. Causal and cached in a
        decoder; in an encoder each row sees its whole sequence (window w: as far as w - 1 to both sides)."""
        layer = self._layer
        if layer is None or layer != len(self._caches):
            raise ProgramError(f"[recorder] {name}: attention belongs in layers 0, 1, 2, ... once each, got {layer}")
        width = (num_heads + 2 * num_kv_heads) * head_dim
        heads = f"{num_heads} query and {num_kv_heads} key/value heads of {head_dim}"
        self._require(num_heads % num_kv_heads == 0, name, f"query heads must be shared out evenly, got {heads}")
        fits = (qkv.rows, qkv.cols) == ("T", width)
        self._require(fits, name, f"{heads} take [T, {width}], {_shape(qkv)} was given")
        if rope is not None:
            fits = rope.rows == "T" and rope.cols <= head_dim and rope.cols % 2 == 0
            self._require(fits, name, f"rope must be [T, up to {head_dim}], {_shape(rope)} was given")
            self._use(rope)
        if bias is not None:
            fits = bias.num_heads == num_heads
            self._require(fits, name, f"the bias must be of {num_heads} heads, it is of {bias.num_heads}")
        if isinstance(bias, Disentangled):
            self._check_disentangled(name, bias)
        self._use(qkv)
        self._caches.append((num_kv_heads, head_dim))
        out = self._new(name, "T", num_heads * head_dim)
        shape = (num_heads, num_kv_heads, head_dim)
        cache = layer if self.causal else 0
        op = Attention(out, qkv, cache, *shape, scale, rope, rope_interleaved, window, softcap, self.causal, bias)
        return self._record(op)

    def store_cross(self, kv: Buffer, layer: int, *, num_kv_heads: int, head_dim: int) -> None:
        """Stores keys and values kv [T, 2 * num_kv_heads * head_dim] for decoder layer `layer` = 0, 1, 2, ..."""
        fits = (kv.rows, kv.cols) == ("T", 2 * num_kv_heads * head_dim)
        self._require(fits, kv.name, f"keys and values are [T, {2 * num_kv_heads * head_dim}], {_shape(kv)} was given")
        self._require(layer == len(self._cross), kv.name, f"layers 0, 1, 2, ... are stored once each, got {layer}")
        self._use(kv)
        self._cross.append((num_kv_heads, head_dim))
        self._ops.append(StoreCross(kv, layer, num_kv_heads, head_dim))

    def cross_attention(
        self, name: str, q: Buffer, *, num_heads: int, num_kv_heads: int, head_dim: int, scale: float
    ) -> Buffer:
        """[T, num_heads * head_dim] from queries of that shape: attention to the source, whose keys and values an
        encoder stored for this layer."""
        layer = self._layer
        if layer is None or layer != len(self._cross):
            raise ProgramError(
                f"[recorder] {name}: cross-attention belongs in layers 0, 1, 2, ... once each, got {layer}"
            )
        self._require(num_heads % num_kv_heads == 0, name, "query heads must be shared out evenly")
        fits = (q.rows, q.cols) == ("T", num_heads * head_dim)
        self._require(fits, name, f"queries are [T, {num_heads * head_dim}], {_shape(q)} was given")
        self._use(q)
        self._cross.append((num_kv_heads, head_dim))
        out = self._new(name, "T", num_heads * head_dim)
        return self._record(CrossAttention(out, q, layer, num_heads, num_kv_heads, head_dim, scale))

    def select(self, name: str, x: Buffer) -> Buffer:
        """[R, cols]: the rows that want an output; everything after it runs on those only."""
        self._require(x.rows == "T", name, f"rows are selected from [T, ...], {_shape(x)} was given")
        self._use(x)
        return self._record(Select(self._new(name, "R", x.cols), x))

    def finish(
        self,
        output: Buffer,
        *,
        ignored: Sequence[str] = (),
        aliases: Sequence[tuple[str, str]] = (),
        fallbacks: Sequence[tuple[str, str]] = (),
    ) -> Program:
        """The program, whose result is `output` [R, n]. `ignored`, `aliases`, `fallbacks`: see Program."""
        self._require(output.rows == "R", "output", f"must be [R, n], {_shape(output)} was given")
        written = self._ops[-1]
        last = not isinstance(written, StoreCross) and written.out == output
        self._require(last, "output", f"must be what the last operation writes, {output.name!r} is not")
        unread = [name for name in self._buffers if name not in self._read and name != output.name]
        self._require(not unread, "finish", f"every buffer must be read, these are not: {', '.join(unread)}")
        self._require(len(set(self._caches)) == 1, "finish", "there must be one or more layers, of equal heads")
        self._require(len(set(self._cross)) <= 1, "finish", "cross-attention must have equal heads in every layer")
        num_kv_heads, head_dim = self._caches[0]
        cross_kv_heads, cross_head_dim = self._cross[0] if self._cross else (0, 0)
        return Program(
            family=self.family,
            ops=tuple(self._ops),
            output=output,
            num_layers=len(self._caches) if self.causal else 1,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            ignored=tuple(ignored),
            aliases=tuple(aliases),
            fallbacks=tuple(fallbacks),
            cross_layers=len(self._cross),
            cross_kv_heads=cross_kv_heads,
            cross_head_dim=cross_head_dim,
            hidden=tuple(self._hidden),
            constants=self._constants,
            derived=self._derived,
        )

    def _check_disentangled(self, name: str, bias: Disentangled) -> None:
        self._require(not self.causal, name, "a disentangled bias needs whole sequences, this is a decoder")
        count = len(bias.c2p_index)
        indices = (*bias.c2p_index, *bias.p2c_index)
        fits = count > 0 and len(bias.p2c_index) == count and all(0 <= i < bias.span for i in indices)
        self._require(fits, name, f"a disentangled bias needs two equal lists of indices below {bias.span}")
        for buffer in (bias.c2p, bias.p2c):
            if buffer is not None:
                fits = (buffer.rows, buffer.cols) == ("T", bias.num_heads * bias.span)
                shape = f"[T, {bias.num_heads * bias.span}]"
                self._require(fits, name, f"a disentangled bias is {shape}, {_shape(buffer)} was given")
                self._use(buffer)

    def _norm(self, op: Norm) -> Buffer:
        for vector in (op.weight, op.bias):
            if vector is not None:
                problem = f"{vector.name!r} has {vector.shape[0]} elements, {_shape(op.x)} was given"
                self._require(vector.shape == (op.x.cols,), op.out.name, problem)
        if op.residual is not None:
            fits = (op.residual.rows, op.residual.cols) == (op.out.rows, op.out.cols)
            self._require(fits, op.out.name, f"residual must be {_shape(op.out)}, {_shape(op.residual)} was given")
            self._use(op.residual)
        self._use(op.x)
        return self._record(op)

    def _new(self, name: str, rows: Rows, cols: int) -> Buffer:
        full = name if self._layer is None else f"layer{self._layer}.{name}"
        if full in self._buffers:
            raise ProgramError(f"[recorder] {full}: buffer names must be unique, this one was given twice")
        self._buffers[full] = Buffer(full, rows, cols)
        return self._buffers[full]

    def _use(self, buffer: Buffer) -> None:
        if self._buffers.get(buffer.name) != buffer:
            raise ProgramError(f"[recorder] {buffer.name}: buffers must be this recorder's own, got another's")
        self._read.add(buffer.name)

    def _record(self, op: BufferOp) -> Buffer:
        self._ops.append(op)
        return op.out

    def _require(self, holds: bool, name: str, problem: str) -> None:
        if not holds:
            scope = "" if self._layer is None or name.startswith("layer") else f"layer{self._layer}."
            raise ProgramError(f"[recorder] {scope}{name}: {problem}")


def _shape(buffer: Buffer) -> str:
    return f"{buffer.name!r} [{buffer.rows}, {buffer.cols}]"


def _check_matrix(matrix: Matrix) -> None:
    """The sources and biases must add up to the shape [N, K]; raises ProgramError."""
    outputs, inputs = matrix.shape
    shapes = [_taken(source) for source in matrix.sources]
    rows = sum(shape[0] for shape in shapes)
    if any(len(shape) != 2 or shape[1] != inputs for shape in shapes) or rows != outputs:
        listed = ", ".join(f"{source.name} {list(shape)}" for source, shape in zip(matrix.sources, shapes, strict=True))
        raise ProgramError(f"[recorder] weight {matrix.name!r} must be {list(matrix.shape)}, its sources are {listed}")
    biases = sum(prod(_taken(source)) for source in matrix.bias)  # some are stored as [1, n]
    if matrix.bias and biases != outputs:
        raise ProgramError(f"[recorder] weight {matrix.name!r} has {outputs} outputs, its bias has {biases} elements")
    if matrix.gated and (len(shapes) != 2 or shapes[0] != shapes[1]):
        raise ProgramError(f"[recorder] gated weight {matrix.name!r} needs two equal sources, got {shapes}")


def _taken(source: Source) -> tuple[int, ...]:
    """Shape of the part of a tensor that a source takes."""
    shape = source.shape[::-1] if source.transposed else source.shape
    return ((source.end or shape[0]) - source.begin, *shape[1:])
