"""Packed weights of a GPU as packed_cache keeps them: one array after the other, in the order of their layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .. import _C
from . import packed_cache
from .cuda_memory import DeviceMemory
from .cuda_packing import DeviceWeights
from .lowering import Lowering

LAYOUT = 1  # raised whenever the layouts of cuda/launch.h or their order in the file change
SPAN = 64 << 20  # bytes that are read, or written, at a time: multiples of what _C.Checksum takes as one


class Piece(NamedTuple):
    """Bytes [begin, begin + size) of an array, at a place of the span that is under way."""

    array: int
    begin: int
    size: int
    at: int


class StoredWeights:
    """Writes packed weights from the device to a file and back, through pinned memory of a span or two."""

    def __init__(self, weights: DeviceWeights[Any], memory: DeviceMemory) -> None:
        self._weights, self._memory = weights, memory
        self._sizes = [layout.nbytes for one in weights.layouts.values() for layout in one.arrays]
        self._sizes += [layout.nbytes for layout in weights.vector_layouts.values()]

    @property
    def nbytes(self) -> int:
        return sum(self._sizes)

    def write(self, file: BinaryIO) -> int:
        arrays, checksum = self._weights.arrays, _C.Checksum()
        staging = self._memory.pinned(min(SPAN, self.nbytes))
        for count, pieces in self._spans():
            for piece in pieces:
                held = arrays[piece.array][piece.begin : piece.begin + piece.size]
                self._memory.fetch(held, staging[piece.at : piece.at + piece.size])
            self._memory.synchronise()
            checksum.add(staging[:count])
            file.write(staging[:count].data)
        return checksum.value

    def read(self, file: str, offset: int, checksum: int) -> bool:
        """Raises OutOfMemoryError, of the device."""
        weights = self._weights
        matrices = {i: one.moved(lambda layout: self._empty(layout.nbytes)) for i, one in weights.layouts.items()}
        vectors = {i: self._empty(layout.nbytes) for i, layout in weights.vector_layouts.items()}
        arrays = [*(array for one in matrices.values() for array in one.arrays), *vectors.values()]
        found = _C.Checksum()
        now, other = (self._memory.pinned(min(SPAN, self.nbytes)) for _ in range(2))
        for count, pieces in self._spans():
            found.read(file, offset, now[:count])  # while `other` is on its way
            offset += count
            self._memory.synchronise()
            for piece in pieces:
                held = arrays[piece.array][piece.begin : piece.begin + piece.size]
                self._memory.send(held, now[piece.at : piece.at + piece.size])
            now, other = other, now
        self._memory.synchronise()
        if found.value != checksum:
            return False
        weights.matrices, weights.vectors = matrices, vectors
        return True

    def _empty(self, count: int) -> Any:
        return self._memory.bytes("weights", max(count, 1))

    def _spans(self) -> Iterator[tuple[int, list[Piece]]]:
        """All arrays cut into spans: the bytes of each, and where they belong."""
        pieces: list[Piece] = []
        filled = 0
        for index, size in enumerate(self._sizes):
            begin = 0
            while begin < size:
                count = min(size - begin, SPAN - filled)
                pieces.append(Piece(index, begin, count, filled))
                begin, filled = begin + count, filled + count
                if filled == SPAN:
                    yield filled, pieces
                    pieces, filled = [], 0
        if pieces:
            yield filled, pieces


def key_in(folder: Path, lowered: Lowering) -> str:
    """packed_cache.key_in() of what a GPU packs: another one than the CPU's."""
    return packed_cache.key_in(folder, f"cuda {LAYOUT} {lowered.recipe!r}")
