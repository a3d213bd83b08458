"""Memory-mapped files and the tensors inside them: views, dtypes, giving pages back. No file format knowledge."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, OutOfMemoryError

# safetensors' names of dtypes -> little-endian NumPy dtype of one element. Types NumPy lacks are their raw bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

MAX_DIMS = 16
MAX_TENSORS = 65_536  # per file; the largest public shards hold a few thousand
PROBLEMS_SHOWN = 12


class MappedFile:
    """A read-only mapping of a whole file. Raises CheckpointError when it cannot be opened or is empty, and
    OutOfMemoryError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise CheckpointError(f"[checkpoint] weight files hold tensors, {path} is empty, download it again")
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            reason = error.strerror or error
            if error.errno == errno.ENOMEM:
                raise OutOfMemoryError(
                    f"[checkpoint] {self.size} bytes of address space were refused for {path}; raise the limit "
                    "(ulimit -v), or use a smaller model"
                ) from error
            raise CheckpointError(f"[checkpoint] {path} cannot be mapped: {reason}, check the file") from error

    def map(self) -> mmap.mmap:
        if self._map is None:
            raise CheckpointError(f"[checkpoint] {self.path} was closed, open the checkpoint again")
        return self._map

    def read(self, begin: int, end: int) -> bytes:
        return self.map()[begin:end]

    def array(self, begin: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Read-only [count] array at byte `begin`; a view, or a copy where the file left it unaligned."""
        if count == 0:
            empty: npt.NDArray[Any] = np.empty(0, dtype)
            empty.flags.writeable = False
            return empty
        view: npt.NDArray[Any] = np.frombuffer(self.map(), dtype, count, begin)
        if view.flags.aligned:
            return view
        copy: npt.NDArray[Any] = view.copy()
        copy.flags.writeable = False
        return copy

    def release(self, begin: int, end: int) -> None:
        """Let the kernel drop the whole pages within bytes [begin, end); reading them again faults them back in."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        # The last page of the file belongs to its last tensor though the file ends inside it.
        last = end if end == self.size else end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self.map().madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap, or, where arrays still look into the file, leave it to the last of them."""
        mapping, self._map = self._map, None
        if mapping is not None:
            with contextlib.suppress(BufferError):
                mapping.close()


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: elements of `dtype` from byte `begin`, `strides` in elements (None: row-major)."""

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    begin: int
    strides: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from the first to the last element."""
        itemsize = DTYPES[self.dtype].itemsize
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return num_elements(self.shape) * itemsize
        return (1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))) * itemsize

    def array(self) -> npt.NDArray[Any]:
        """Read-only array of `shape`: a view of the mapping, or a copy of a tensor that is stored strided."""
        dtype = DTYPES[self.dtype]
        flat = self.file.array(self.begin, self.span // dtype.itemsize, dtype)
        if self.strides is None or flat.size == 0:
            return flat.reshape(self.shape)
        byte_strides = [stride * dtype.itemsize for stride in self.strides]
        strided = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, byte_strides, writeable=False))
        strided.flags.writeable = False
        return strided

    def release(self) -> None:
        self.file.release(self.begin, self.begin + self.span)


def num_elements(shape: Iterable[int]) -> int:
    return math.prod(shape)


def is_count(value: object) -> bool:
    """A non-negative integer that fits 63 bits, and is not a bool."""
    return type(value) is int and 0 <= value < 1 << 63


def is_addressable(shape: Iterable[int], dtype: str) -> bool:
    """Whether NumPy can have such an array: bytes without the zero dimensions fit 63 bits."""
    return math.prod(n for n in shape if n) * DTYPES[dtype].itemsize < 1 << 63


def refuse(path: Path, problems: list[str]) -> None:
    """Raise one CheckpointError with all `problems` of a file; do nothing when there are none."""
    if not problems:
        return
    more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
    listed = "; ".join(problems[:PROBLEMS_SHOWN]) + more
    raise CheckpointError(f"[checkpoint] {path} is damaged: {listed}. Download or write it again")


def check_not_a_pointer(path: Path, head: bytes) -> None:
    """Raise for the text file that git leaves in place of a large file."""
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"[checkpoint] {path} is a Git LFS pointer, run `git lfs pull` in its folder")
