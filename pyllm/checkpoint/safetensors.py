"""The safetensors format: an 8-byte length, a JSON header, one buffer that the tensors tile. Headers only; strict.

Format: https://github.com/huggingface/safetensors#format. The size of the file bounds every allocation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .json_file import parse_json
from .mapped import (
    DTYPES,
    MAX_DIMS,
    MAX_TENSORS,
    MappedFile,
    TensorEntry,
    check_not_a_pointer,
    is_addressable,
    is_count,
    num_elements,
    refuse,
)

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# A tensor's entry has about 10 quotes, 8 commas and colons, 4 brackets. Counting them first bounds what parsing costs.
MAX_HEADER_TOKENS = 32 * MAX_TENSORS
FIELDS = {"dtype", "shape", "data_offsets"}


def read_safetensors(path: Path) -> dict[str, TensorEntry]:
    """Name -> entry, in the order of the header. Raises CheckpointError with everything that is wrong."""
    file = MappedFile(path)
    try:
        header, begin = _read_header(file)
        return _read_entries(file, header, begin)
    except CheckpointError:
        file.close()
        raise


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The parsed header and where the buffer begins."""
    check_not_a_pointer(file.path, file.read(0, 64))
    if file.size < 8:
        refuse(file.path, [f"a safetensors file has at least 8 bytes, this one {file.size}"])
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        refuse(file.path, [f"its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}"])
    if 8 + length > file.size:
        refuse(file.path, [f"its header claims {length} bytes, the file has {file.size - 8} after the length"])
    raw = file.read(8, 8 + length)
    if not raw.startswith(b"{"):
        refuse(file.path, ["its header must begin with '{'"])
    if sum(raw.count(mark) for mark in (b'"', b",", b":", b"[", b"{")) > MAX_HEADER_TOKENS:
        refuse(file.path, [f"its header has more than {MAX_HEADER_TOKENS} marks, too many for {MAX_TENSORS} tensors"])
    try:
        header = parse_json(raw.decode("utf-8"), strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"[checkpoint] {file.path} is damaged: its header is not valid JSON ({error}). Download or write it again"
        ) from error
    # Text that begins with '{' and parses is an object.
    assert isinstance(header, dict)
    return header, 8 + length


def _read_entries(file: MappedFile, header: dict[str, Any], begin: int) -> dict[str, TensorEntry]:
    problems: list[str] = []
    _check_metadata(header.pop("__metadata__", {}), problems)
    if len(header) > MAX_TENSORS:
        refuse(file.path, [f"it has {len(header)} tensors, at most {MAX_TENSORS} are read"])
    entries: dict[str, TensorEntry] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, value in header.items():
        found = _check_entry(name, value, problems)
        if found is not None:
            dtype, shape, (first, last) = found
            entries[name] = TensorEntry(file, dtype, shape, begin + first)
            ranges.append((first, last, name))
    if not problems:
        _check_tiling(ranges, file.size - begin, problems)
    refuse(file.path, problems)
    return entries


def _check_metadata(metadata: Any, problems: list[str]) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append("__metadata__ must map strings to strings")


def _check_entry(name: str, value: Any, problems: list[str]) -> tuple[str, tuple[int, ...], tuple[int, int]] | None:
    """(dtype, shape, byte range) of one tensor, or None after adding to `problems`."""
    count = len(problems)
    if not isinstance(value, dict) or set(value) != FIELDS:
        problems.append(f"{name!r} must have exactly dtype, shape and data_offsets")
        return None
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        given = dtype if isinstance(dtype, str) else type(dtype).__name__
        problems.append(f"{name!r} has dtype {given!r:.40}, known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
        problems.append(f"{name!r} must have a shape of at most {MAX_DIMS} non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        problems.append(f"{name!r} must have data_offsets of two non-negative integers")
    elif offsets[0] > offsets[1]:
        problems.append(f"{name!r} ends at {offsets[1]} before it begins at {offsets[0]}")
    if len(problems) > count:
        return None
    if not is_addressable(shape, dtype):
        problems.append(f"{name!r} has a shape that overflows 63 bits")
        return None
    needed = num_elements(shape) * DTYPES[dtype].itemsize
    if needed != offsets[1] - offsets[0]:
        problems.append(f"{name!r} of {dtype} {shape} needs {needed} bytes, its offsets span {offsets[1] - offsets[0]}")
        return None
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _check_tiling(ranges: list[tuple[int, int, str]], size: int, problems: list[str]) -> None:
    """The tensors must cover the buffer of `size` bytes without holes or overlaps."""
    end = 0
    for first, last, name in sorted(ranges):
        if first != end:
            kind = "a hole before" if first > end else "an overlap at"
            problems.append(f"there is {kind} {name!r}: it begins at byte {first}, the data before it ends at {end}")
        end = max(end, last)
    if end != size:
        problems.append(f"its tensors end at byte {end} of a buffer of {size} bytes (truncated or padded)")
