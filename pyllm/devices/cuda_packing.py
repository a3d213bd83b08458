"""Weights in the layouts of the CUDA kernels (cuda/launch.h Matrix), made on the host, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import _C
from ..checkpoint.codes import floats_of
from ..errors import ArrayError
from .formats import GROUPS
from .lowering import Lowering, rows_of

# Numbers of csrc/kernels.h Format. The two that only differ in the CPU's arithmetic are the plain ones here.
FORMATS = {
    "float32": 0,
    "float32-bf16x3": 0,
    "bfloat16": 1,
    "float16": 2,
    "int8": 3,
    "int8-fast": 3,
    "int4": 5,
    "int4-g128": 6,
    "int4z": 7,
    "int4z-g128": 8,
}
ELEMENTS = {0: np.float32, 1: np.uint16, 2: np.float16}  # of the float formats' codes
ROWS = 16  # packed rows come in tiles of so many
BLOCK = 1 << 18  # weights converted at a time, so that what that needs stays in the caches
MOST_THREADS = 8  # more would wait for the interpreter's lock
MOST_ZERO = 16  # GPTQ stores zero points less one: 0..15

A = TypeVar("A")
B = TypeVar("B")
CodePart = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint8] | None]


class Layout(NamedTuple):
    """Of an array: what is known before it is there."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(np.dtype(self.dtype).itemsize)

    def full(self, value: int = 0) -> NDArray[Any]:
        return np.full(self.shape, value, self.dtype) if value else np.zeros(self.shape, self.dtype)


@dataclass(frozen=True)
class Packed(Generic[A]):
    """One matrix as cuda::Matrix describes it: N outputs (gated: gates and ups), K inputs, rows of ld weights. codes,
    scales, zeros and bias are arrays on the host or the device, or their layouts."""

    format: int
    codes: A
    scales: A | None
    zeros: A | None
    bias: A | None
    n: int
    k: int
    ld: int
    gated: bool

    def moved(self, move: Callable[[A], B]) -> Packed[B]:
        """The same with move(array) instead of each array."""
        codes = move(self.codes)
        scales, zeros, bias = (None if each is None else move(each) for each in (self.scales, self.zeros, self.bias))
        return Packed(self.format, codes, scales, zeros, bias, self.n, self.k, self.ld, self.gated)

    def described(self, pointer: Callable[[A], int]) -> dict[str, int | bool]:
        """What cuda/bindings/matrix.h reads; pointer gives an array's address."""
        addresses = {
            name: 0 if array is None else pointer(array)
            for name, array in (
                ("codes", self.codes),
                ("scales", self.scales),
                ("zeros", self.zeros),
                ("bias", self.bias),
            )
        }
        sizes = {"format": self.format, "n": self.n, "k": self.k, "ld": self.ld, "gated": self.gated}
        return {**sizes, **addresses}

    @property
    def arrays(self) -> list[A]:
        """All it holds."""
        return [array for array in (self.codes, self.scales, self.zeros, self.bias) if array is not None]


class DeviceWeights(Generic[A]):
    """Takes a network's weights from packing.load_weights, as _C.Executor does, packs and uploads them.

    upload: brings an array of the host to the device; what it returns is kept, the host's is not. matrices and vectors
    are by their ids in the core's program; layouts and vector_layouts tell of all of them from the start, in the same
    order.
    """

    def __init__(self, lowered: Lowering, upload: Callable[[NDArray[Any]], A]) -> None:
        self.matrices: dict[int, Packed[A]] = {}
        self.vectors: dict[int, A] = {}
        self._upload = upload
        self._of = {index: (matrix, lowered.chosen[matrix].format) for matrix, index in lowered.matrices.items()}
        self.layouts = {
            index: layout_of(
                [rows_of(source) for source in matrix.sources], matrix.shape[1], name, matrix.gated, bool(matrix.bias)
            )
            for index, (matrix, name) in self._of.items()
        }
        sizes = {index: vector.shape[0] for vector, index in lowered.vectors.items()}
        sizes.update({index: bias.num_heads * len(bias.buckets) for bias, index in lowered.biases.items()})
        self.vector_layouts = {index: Layout((size,), np.float32) for index, size in sizes.items()}

    @property
    def arrays(self) -> list[A]:
        """All that is there, in the order of the layouts."""
        return [*(array for one in self.matrices.values() for array in one.arrays), *self.vectors.values()]

    def pack(self, matrix: int, parts: list[NDArray[Any]], bias: list[NDArray[np.float32]]) -> None:
        """From floats: see pack_floats. Raises ArrayError."""
        of, name = self._of[matrix]
        packed = pack_floats(parts, name, gated=of.gated, bias=bias, name=of.name)
        self.matrices[matrix] = packed.moved(self._upload)

    def pack_codes(
        self, matrix: int, parts: list[CodePart], bias: list[NDArray[np.float32]], group_size: int = 0
    ) -> None:
        """From a checkpoint's integers: see pack_codes. Raises ArrayError."""
        of, name = self._of[matrix]
        packed = pack_codes(parts, name, gated=of.gated, bias=bias, group_size=group_size, name=of.name)
        self.matrices[matrix] = packed.moved(self._upload)

    def set_vector(self, id: int, values: NDArray[np.float32]) -> None:
        """One float32 vector."""
        self.vectors[id] = self._upload(np.ascontiguousarray(values, np.float32))


def layout_of(sizes: Sequence[int], k: int, dtype: str, gated: bool, bias: bool) -> Packed[Layout]:
    """Of a matrix whose parts have so many outputs, of k inputs each, in a format by its name."""
    places, number = Places(sizes, gated), FORMATS[dtype]
    ld = _up(k, 128 if dtype in GROUPS else 64)
    codes, scales, zeros = Layout((places.rows, ld), ELEMENTS.get(number, np.int8)), None, None
    if dtype in GROUPS:
        codes = Layout((places.rows, ld // 2), np.uint8)
        scales = Layout((places.rows, ld // GROUPS[dtype]), np.float16)
        zeros = Layout(scales.shape, np.uint8) if dtype.startswith("int4z") else None
    elif number == FORMATS["int8"]:
        scales = Layout((places.rows,), np.float32)
    biases = Layout((places.rows,), np.float32) if bias else None
    return Packed(number, codes, scales, zeros, biases, places.n, k, ld, gated)


def pack_floats(
    parts: Sequence[NDArray[Any]],
    dtype: str,
    *,
    gated: bool = False,
    bias: Sequence[NDArray[np.float32]] = (),
    name: str = "the matrix",
) -> Packed[NDArray[Any]]:
    """Parts [n, k], outputs first, joined along n (gated: the gate and the up part, of one size).

    Each float32, float16, or bfloat16 as uint16, with any strides. dtype: a format by its name (formats.py); integers
    are those that _C.quantize chooses. Raises ArrayError where a weight is infinite or NaN, or does not fit.
    """
    if dtype.startswith("int"):
        asked = "int8" if dtype == "int8-fast" else dtype
        quantized = [(*_C.quantize(part, asked), None) for part in parts]
        return pack_codes(quantized, dtype, gated=gated, bias=bias, group_size=GROUPS.get(dtype, 0), name=name)
    sizes, k = [len(part) for part in parts], parts[0].shape[1]
    places, out = Places(sizes, gated), layout_of(sizes, k, dtype, gated, bool(bias))
    codes = out.codes.full()

    def convert(i: int, begin: int, end: int) -> None:
        rows = _converted(parts[i][begin:end], dtype)
        if dtype == "float16" and not np.isfinite(rows).all():
            raise _unfit(begin + int(np.flatnonzero(~np.isfinite(rows).all(1))[0]), i, name)
        codes[places.of(i, begin, len(rows)), :k] = rows

    _by_blocks(convert, sizes, k)
    return Packed(out.format, codes, None, None, places.bias(bias), out.n, k, out.ld, gated)


def pack_codes(
    parts: Sequence[CodePart],
    dtype: str,
    *,
    gated: bool = False,
    bias: Sequence[NDArray[np.float32]] = (),
    group_size: int = 0,
    name: str = "the matrix",
) -> Packed[NDArray[Any]]:
    """Parts (codes [n, k], scales [n, groups], zero points [n, groups] or None), joined as in pack_floats.

    codes: int8, or uint8 0..15. group_size: inputs that share a scale, the format's; 0: all of them do. Raises
    ArrayError for codes above 15, zero points above 16, and scales that are infinite or NaN (int4: in float16).
    """
    sizes, k = [len(codes) for codes, _, _ in parts], parts[0][0].shape[1]
    places, out = Places(sizes, gated), layout_of(sizes, k, dtype, gated, bool(bias))
    for i, part in enumerate(parts):
        _check(part, i, dtype, name)
    packed_bias, ld = places.bias(bias), out.ld
    assert out.scales is not None
    if dtype not in GROUPS:
        bytes8, scales8 = out.codes.full(), out.scales.full()
        for i, (codes, scales, _) in enumerate(parts):
            at = places.of(i, 0, len(codes))
            bytes8[at, :k], scales8[at] = codes, scales[:, 0]
        return Packed(out.format, bytes8, scales8, None, packed_bias, out.n, k, ld, gated)
    group = GROUPS[dtype]
    words, scales4 = out.codes.full(0x88), out.scales.full()
    zeros4 = None if out.zeros is None else out.zeros.full(8)
    groups = -(-k // group)  # of a row; the rest up to ld have a scale of zero

    def pack(i: int, begin: int, end: int) -> None:
        codes, scales, zeros = parts[i]
        at = places.of(i, begin, end - begin)
        scales4[at, :groups] = scales[begin:end]  # one for all inputs becomes that of each group
        last = np.full(end - begin, 8, np.uint8)
        if zeros4 is not None and zeros is not None:
            zeros4[at, :groups] = zeros[begin:end]
            last = np.minimum(zeros[begin:end, -1], 15)  # 16 is no code; these inputs are not there
        wide = np.full((end - begin, ld), 8, np.uint8)
        wide[:, k : groups * group] = last[:, None]
        wide[:, :k] = codes[begin:end]
        words[at] = interleaved(wide)

    _by_blocks(pack, sizes, ld)
    return Packed(out.format, words, scales4, zeros4, packed_bias, out.n, k, ld, gated)


def interleaved(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [n, ld], ld a multiple of 128 -> bytes [n, ld / 2] in the kernels' order.

    Of 128 codes, k = 32 j + 8 t + 2 i + h goes to nibble i + 4 h of word j of piece t: byte 2 h + i / 2, the low nibble
    where i is even.
    """
    eight = codes.view(np.uint64)  # 2 i + h is the byte
    pairs = (eight | eight >> np.uint64(12)) & np.uint64(0x0000FFFF0000FFFF)  # bytes 0, 1, 4, 5: of i = 0, 1 and 2, 3
    words = pairs & np.uint64(0xFF)
    words |= pairs >> np.uint64(24) & np.uint64(0xFF00)
    words |= (pairs & np.uint64(0xFF00)) << np.uint64(8)
    words |= pairs >> np.uint64(16) & np.uint64(0xFF000000)
    of = words.astype(np.uint32).reshape(len(codes), -1, 4, 4)  # [n, chunk, j, t]
    return np.ascontiguousarray(of.transpose(0, 1, 3, 2)).view(np.uint8).reshape(len(codes), -1)


def _by_blocks(work: Callable[[int, int, int], None], sizes: Sequence[int], k: int) -> None:
    """work(part, begin, end) of all blocks of rows, by several threads where there are several blocks."""
    step = max(1, BLOCK // max(k, 1))
    blocks = [(i, begin, min(begin + step, size)) for i, size in enumerate(sizes) for begin in range(0, size, step)]
    threads = min(MOST_THREADS, _C.default_threads(), len(blocks))
    if threads < 2:
        for block in blocks:
            work(*block)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda block: work(*block), blocks):
            pass


class Places:
    """Where rows of the parts stand among the packed rows. n: outputs, gates and ups both counted; rows: with the
    padding to tiles of 16."""

    def __init__(self, sizes: Sequence[int], gated: bool) -> None:
        self.n = sum(sizes)
        self._begins = [0, *np.cumsum(sizes)]
        self._gated = gated
        self.rows = 2 * _up(sizes[0], 8) if gated else _up(self.n, ROWS)

    def of(self, part: int, begin: int, count: int) -> Any:
        """The packed rows of `count` rows of a part from `begin` on: a slice where they are neighbours."""
        if not self._gated:
            first = int(self._begins[part]) + begin
            return slice(first, first + count)
        row = np.arange(begin, begin + count)
        return row // 8 * 16 + 8 * part + row % 8

    def bias(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
        """float32 [rows], zero where there is no row; None where there are no parts."""
        if not parts:
            return None
        out = np.zeros(self.rows, np.float32)
        for i, part in enumerate(parts):
            out[self.of(i, 0, len(part))] = part
        return out


def _converted(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rows of float32, float16 or bfloat16 bits as elements of a float format, to the nearest, ties to even."""
    if dtype == "bfloat16":
        return rows if rows.dtype == np.uint16 else _bf16_bits(np.asarray(rows, np.float32))
    if dtype == "float16":
        with np.errstate(over="ignore"):  # told apart by who calls
            return rows if rows.dtype == np.float16 else floats_of(rows).astype(np.float16)
    return floats_of(rows)


def _bf16_bits(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = rows.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    lost = np.isnan(rows)
    if lost.any():
        rounded[lost] = 0x7FFF
    return rounded


def _check(part: CodePart, index: int, dtype: str, name: str) -> None:
    """Raises ArrayError for values that the format does not hold."""
    codes, scales, zeros = part
    where = f"part {index} of {name}"
    if dtype.startswith("int4"):
        if codes.size and codes.max() > 15:
            raise ArrayError(f"[load] a code must be 0 to 15, got {codes.max()} in {where}; check the checkpoint")
        if zeros is not None and zeros.size and zeros.max() > MOST_ZERO:
            raise ArrayError(
                f"[load] a zero point must be 0 to {MOST_ZERO}, got {zeros.max()} in {where}; check the checkpoint"
            )
        with np.errstate(over="ignore"):
            scales = scales.astype(np.float16)
    wrong = ~np.isfinite(scales).all(1)
    if wrong.any():
        raise _unfit(int(np.flatnonzero(wrong)[0]), index, name)


def _unfit(row: int, part: int, name: str) -> ArrayError:
    return ArrayError(
        f"[load] weights must be finite and in the range of their format, got others in row {row} of part {part} of "
        f"{name}; check the checkpoint or choose float32 or bfloat16"
    )


def _up(x: int, to: int) -> int:
    return -(-x // to) * to
