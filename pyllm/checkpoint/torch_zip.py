"""torch.save archives (pytorch_model.bin since torch 1.6): a zip of a pickle and plain storages, read without torch.

The storages are mapped, never copied; the pickle is interpreted by `state_dict`, which can only name tensors.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from .mapped import (
    DTYPES,
    MappedFile,
    TensorEntry,
    check_not_a_pointer,
    is_addressable,
    num_elements,
    refuse,
)
from .state_dict import StateDictError, StoredTensor, read_state_dict
from .zip_directory import read_directory

MAX_PICKLE_BYTES = 64 << 20  # a tensor takes about 200 bytes and its name


def read_torch_zip(path: Path) -> dict[str, TensorEntry]:
    """Name -> entry, in the order of the state dict. Raises CheckpointError with everything that is wrong."""
    file = MappedFile(path)
    try:
        _check_format(file)
        directory = read_directory(file)
        root, data = _read_pickle(file, directory)
        try:
            tensors = read_state_dict(data)
        except StateDictError as error:
            raise CheckpointError(
                f"[checkpoint] {path} is not a plain state dict: {error}. Ask its author for safetensors"
            ) from error
        return _locate(file, directory, root, tensors)
    except CheckpointError:
        file.close()
        raise


def _check_format(file: MappedFile) -> None:
    head = file.read(0, 512)
    check_not_a_pointer(file.path, head)
    if head.startswith(b"PK\x03\x04"):
        return
    # Before torch 1.6: several pickles after each other, or a tar of them.
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        raise CheckpointError(
            f"[checkpoint] torch archives are read in their zip format, {file.path} has the one before torch 1.6, "
            "save its state dict again with a current torch, or as safetensors"
        )
    raise CheckpointError(f"[checkpoint] {file.path} is not a torch archive (no zip signature), download it again")


def _read_pickle(file: MappedFile, directory: dict[str, tuple[int, int]]) -> tuple[str, bytes]:
    """(root folder with its slash, the bytes of data.pkl)."""
    roots = [name[: -len("data.pkl")] for name in directory if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        refuse(file.path, [f"a torch archive has one data.pkl, this one {len(roots)}"])
    root = roots[0]
    if root + "byteorder" in directory and file.read(*directory[root + "byteorder"]) != b"little":
        raise CheckpointError(f"[checkpoint] {file.path} was written on a big-endian machine, save it on another one")
    begin, end = directory[root + "data.pkl"]
    if end - begin > MAX_PICKLE_BYTES:
        refuse(file.path, [f"its data.pkl has {end - begin} bytes, at most {MAX_PICKLE_BYTES} are read"])
    return root, file.read(begin, end)


def _locate(
    file: MappedFile, directory: dict[str, tuple[int, int]], root: str, tensors: dict[str, StoredTensor]
) -> dict[str, TensorEntry]:
    problems: list[str] = []
    entries: dict[str, TensorEntry] = {}
    for name, tensor in tensors.items():
        problem = _check(tensor, directory.get(f"{root}data/{tensor.storage.key}"))
        if problem:
            problems.append(f"{name!r:.80} {problem}")
            continue
        begin = directory[f"{root}data/{tensor.storage.key}"][0] + tensor.offset * DTYPES[tensor.dtype].itemsize
        strides = None if _is_row_major(tensor) else tensor.strides
        entries[name] = TensorEntry(file, tensor.dtype, tensor.shape, begin, strides)
    refuse(file.path, problems)
    return entries


def _check(tensor: StoredTensor, span: tuple[int, int] | None) -> str:
    """What is wrong with a tensor whose storage spans these bytes of the file, or ''."""
    if span is None:
        return f"needs the storage data/{tensor.storage.key:.40}, which is not there"
    claimed = tensor.storage.count * (DTYPES[tensor.storage.dtype].itemsize if tensor.storage.dtype else 1)
    if claimed != span[1] - span[0]:
        return f"claims a storage of {claimed} bytes, the file has {span[1] - span[0]} (truncated)"
    if not is_addressable(tensor.shape, tensor.dtype):
        return "has a shape that overflows 63 bits"
    capacity = claimed // DTYPES[tensor.dtype].itemsize
    elements = num_elements(tensor.shape)
    if elements > capacity:
        return f"has {elements} elements in a storage of {capacity} (truncated, or expanded from fewer)"
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if elements and tensor.offset + reach >= capacity:
        return f"reaches element {tensor.offset + reach} of a storage of {capacity}"
    return ""


def _is_row_major(tensor: StoredTensor) -> bool:
    if 0 in tensor.shape:
        return True
    step = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n > 1 and stride != step:
            return False
        step *= n
    return True
