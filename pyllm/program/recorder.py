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

from ..errors import ProgramError
from .program import (
    ActivationName,
    Attention,
    Buffer,
    Embed,
    Linear,
    Matrix,
    Norm,
    Op,
    Program,
    Rotary,
    Rows,
    Select,
    Source,
    Vector,
)


class Recorder:
    """Records one decoder network. Every method but `finish` returns the buffer it writes; raises ProgramError."""

    def __init__(self, family: str, *, vocab_size: int, max_positions: int) -> None:
        self.family = family
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self._ops: list[Op] = []
        self._buffers: dict[str, Buffer] = {}
        self._read: set[str] = set()
        self._layer: int | None = None
        self._caches: list[tuple[int, int]] = []  # (num_kv_heads, head_dim) of each layer's cache

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        """Names the buffers of decoder layer `index`, whose attention owns cache `index`."""
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
    ) -> Buffer:
        """[T, D] = scale * table[ids] (+ positions[position + position_offset]); table [V, D], positions [P, D]."""
        _check_matrix(table)
        rows, width = table.shape
        self._require(rows >= self.vocab_size, name, f"table {table.name!r} needs {self.vocab_size} rows, has {rows}")
        if positions is not None:
            _check_matrix(positions)
            need = self.max_positions + position_offset
            problem = f"positions {positions.name!r} must be [{need} or more, {width}], is {list(positions.shape)}"
            self._require(positions.shape[0] >= need and positions.shape[1] == width, name, problem)
        out = self._new(name, "T", width)
        return self._record(Embed(out, table, positions, position_offset, scale))

    def rotary(self, name: str, inv_freq: Sequence[float], scaling: float = 1.0) -> Buffer:
        """[T, 2 * len(inv_freq)]: cosines, then sines, of position * inv_freq, times `scaling`."""
        self._require(len(inv_freq) > 0, name, "inv_freq must not be empty")
        out = self._new(name, "T", 2 * len(inv_freq))
        return self._record(Rotary(out, tuple(float(f) for f in inv_freq), scaling))

    def layer_norm(self, name: str, x: Buffer, weight: Vector, bias: Vector | None, eps: float) -> Buffer:
        """(x - mean) / sqrt(variance + eps) * weight (+ bias), each row."""
        return self._norm(Norm(self._new(name, x.rows, x.cols), x, "layer", weight, bias, eps))

    def rms_norm(self, name: str, x: Buffer, weight: Vector, eps: float) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight, each row."""
        return self._norm(Norm(self._new(name, x.rows, x.cols), x, "rms", weight, None, eps))

    def linear(
        self,
        name: str,
        x: Buffer,
        weight: Matrix,
        activation: ActivationName = "none",
        residual: Buffer | None = None,
    ) -> Buffer:
        """residual + activation(x @ W.T + bias); W [N, K]. Gated, W = [gate; up]: act(gate) * up, [rows, N / 2]."""
        _check_matrix(weight)
        outputs, inputs = weight.shape
        self._require(x.cols == inputs, name, f"weight {weight.name!r} takes rows of {inputs}, {_shape(x)} was given")
        out = self._new(name, x.rows, outputs // 2 if weight.gated else outputs)
        if residual is not None:
            fits = (residual.rows, residual.cols) == (out.rows, out.cols)
            self._require(fits, name, f"residual must be [{out.rows}, {out.cols}], {_shape(residual)} was given")
            self._use(residual)
        self._use(x)
        return self._record(Linear(out, x, weight, activation, residual))

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
    ) -> Buffer:
        """[T, num_heads * head_dim] from qkv [T, (num_heads + 2 * num_kv_heads) * head_dim], causal, cached."""
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
        self._use(qkv)
        self._caches.append((num_kv_heads, head_dim))
        out = self._new(name, "T", num_heads * head_dim)
        shape = (num_heads, num_kv_heads, head_dim)
        return self._record(Attention(out, qkv, layer, *shape, scale, rope, rope_interleaved, window, softcap))

    def select(self, name: str, x: Buffer) -> Buffer:
        """[R, cols]: the rows that want logits; everything after it runs on those only."""
        self._require(x.rows == "T", name, f"rows are selected from [T, ...], {_shape(x)} was given")
        self._use(x)
        return self._record(Select(self._new(name, "R", x.cols), x))

    def finish(
        self, logits: Buffer, *, ignored: Sequence[str] = (), aliases: Sequence[tuple[str, str]] = ()
    ) -> Program:
        """The program, whose result is `logits` [R, V]. `ignored`, `aliases`: see Program."""
        fits = (logits.rows, logits.cols) == ("R", self.vocab_size)
        self._require(fits, "logits", f"must be [R, {self.vocab_size}], {_shape(logits)} was given")
        unread = [name for name in self._buffers if name not in self._read and name != logits.name]
        self._require(not unread, "finish", f"every buffer must be read, these are not: {', '.join(unread)}")
        self._require(len(set(self._caches)) == 1, "finish", "there must be one or more layers, of equal heads")
        num_kv_heads, head_dim = self._caches[0]
        return Program(
            family=self.family,
            ops=tuple(self._ops),
            logits=logits,
            num_layers=len(self._caches),
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            ignored=tuple(ignored),
            aliases=tuple(aliases),
        )

    def _norm(self, op: Norm) -> Buffer:
        for vector in (op.weight, op.bias):
            if vector is not None:
                problem = f"{vector.name!r} has {vector.shape[0]} elements, {_shape(op.x)} was given"
                self._require(vector.shape == (op.x.cols,), op.out.name, problem)
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

    def _record(self, op: Op) -> Buffer:
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
    biases = sum(_taken(source)[0] for source in matrix.bias)
    if matrix.bias and biases != outputs:
        raise ProgramError(f"[recorder] weight {matrix.name!r} has {outputs} outputs, its bias has {biases} elements")
    if matrix.gated and (len(shapes) != 2 or shapes[0] != shapes[1]):
        raise ProgramError(f"[recorder] gated weight {matrix.name!r} needs two equal sources, got {shapes}")


def _taken(source: Source) -> tuple[int, ...]:
    """Shape of the part of a tensor that a source takes."""
    shape = source.shape[::-1] if source.transposed else source.shape
    return ((source.end or shape[0]) - source.begin, *shape[1:])
