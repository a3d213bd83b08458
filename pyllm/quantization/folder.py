"""Writes a checkpoint folder whose planned tensors are integers: compressed-tensors' "pack-quantized" (4 bits) and
"int-quantized" (8 bits) layouts, one safetensors file, tokenizer and generation files as they are."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from .plan import Planned

GROUPS = {"int8": 0, "int4": 32, "int4-g128": 128}  # inputs that share a scale; 0: all
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}
# Files that say how the weights of the source lie, or hold them.
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.index.json", "*.msgpack", "*.h5", "*.gguf", "*.onnx")


def quantization_config(to: str, kept: list[str]) -> dict[str, Any]:
    """The entry of config.json that says how the weights are stored (the compressed-tensors library's schema); `kept`:
    modules whose weights are as they were. Its "pyllm" entry is read by pyllm only: what the rest is run in."""
    bits, group = (8 if to == "int8" else 4), GROUPS[to]
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
        "dynamic": False,
        "observer": "minmax",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": kept,
        "pyllm": {"quantization": to},
    }


def tensors_of(name: str, codes: NDArray[Any], scales: NDArray[np.float32], to: str) -> dict[str, NDArray[Any]]:
    """The stored tensors of one weight [n, k] in place of `name`."""
    stem = name.removesuffix(".weight")
    if to == "int8":
        return {f"{stem}.weight": codes.astype(np.int8), f"{stem}.weight_scale": scales.astype(np.float32)}
    outputs, inputs = codes.shape
    padded = np.full((outputs, -(-inputs // 8) * 8), 8, np.uint32)
    padded[:, :inputs] = codes
    words = np.zeros((outputs, padded.shape[1] // 8), np.uint32)
    for place in range(8):  # low nibble first
        words |= padded[:, place::8] << np.uint32(4 * place)
    return {
        f"{stem}.weight_packed": words.view(np.int32),
        f"{stem}.weight_scale": scales.astype(np.float16),  # exact: scales are chosen among float16
        f"{stem}.weight_shape": np.array([outputs, inputs], np.int64),
    }


def layout_of(name: str, planned: Planned, to: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(stored type, shape) of each of tensors_of()'s tensors, before there are any."""
    stem, n, k = name.removesuffix(".weight"), planned.outputs, planned.inputs
    if to == "int8":
        return {f"{stem}.weight": ("I8", (n, k)), f"{stem}.weight_scale": ("F32", (n, 1))}
    return {
        f"{stem}.weight_packed": ("I32", (n, -(-k // 8))),
        f"{stem}.weight_scale": ("F16", (n, -(-k // GROUPS[to]))),
        f"{stem}.weight_shape": ("I64", (2,)),
    }


class SafetensorsWriter:
    """One safetensors file, written tensor by tensor in the order of `layout` (name -> stored type and shape)."""

    def __init__(self, path: Path, layout: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in layout.items():
            size = int(np.prod(shape, dtype=np.int64)) * BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._layout = layout
        self._left: Iterator[str] = iter(layout)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, array: NDArray[Any]) -> None:
        expected = next(self._left)
        dtype, shape = self._layout[name]
        assert (name, array.shape, array.itemsize) == (expected, tuple(shape), BYTES[dtype])
        self._file.write(np.ascontiguousarray(array).data)

    def close(self) -> None:
        assert next(self._left, None) is None, "a tensor was not written"
        self._file.close()


def copy_side_files(checkpoint: Checkpoint, to: Path) -> None:
    """Everything that is not weights or config.json: tokenizer, generation config, licence, subfolders' modules."""
    weights = {path for pattern in WEIGHT_FILES for path in checkpoint.folder.rglob(pattern)}
    for path in sorted(checkpoint.folder.rglob("*")):
        inside = path.relative_to(checkpoint.folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and path not in weights and not hidden and str(inside) not in ("config.json", "receipt.json"):
            (to / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / inside)
