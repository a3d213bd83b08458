"""Checkpoints of bitsandbytes: `weight` int8 with `SCB` (LLM.int8), or 4 bits by a table of 16 values (nf4, fp4).

Layouts, as bitsandbytes 0.50 writes them; matrices are [outputs, inputs]:
  8 bit  weight int8 [n, k], SCB float32 [n] (the largest magnitudes: weight * SCB / 127), weight_format (0: rows)
  4 bit  weight uint8 [n * k / 2, 1], the first of two in the high bits, each an index of weight.quant_map [16];
         times weight.absmax by blocks of the flat one; weight.quant_state.bitsandbytes__nf4 is JSON (shape, blocksize).
         absmax itself may be uint8: nested_quant_map[absmax] * nested_absmax by blocks, plus nested_offset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import Codes, Kind, Parts, QuantizedMatrix, Read, check_scales, floats_of
from .json_file import parse_json
from .mapped import TensorEntry

STATE = "quant_state.bitsandbytes__"
ROLES_4 = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{STATE}nf4", f"{STATE}fp4")
MAX_STATE = 10_000  # bytes of the JSON text


@dataclass(frozen=True)
class Scheme:
    """bits 8 or 4."""

    bits: int
    method: str = "bitsandbytes"

    def label(self) -> str:
        return f"{self.method}, {self.bits} bit"

    def collect(self, entries: dict[str, TensorEntry]) -> dict[str, QuantizedMatrix]:
        """Matrices by the name of their weight."""
        found: dict[str, dict[str, str]] = {}
        for name, entry in entries.items():
            base, _, rest = name.rpartition(".")
            if self.bits == 8 and (rest in ("SCB", "weight_format") or (rest == "weight" and entry.dtype == "I8")):
                found.setdefault(base, {})[rest] = name
            base, weight, rest = name.rpartition(".weight.")
            if self.bits == 4 and weight and rest in ROLES_4:
                found.setdefault(base, {})[rest] = name
        for base, parts in found.items():
            if f"{base}.weight" in entries:
                parts["weight"] = f"{base}.weight"
        kind = _Int8 if self.bits == 8 else _FourBit
        return {f"{base}.weight": kind(Parts(base, entries, parts)) for base, parts in found.items()}


def parse_bitsandbytes(config: Mapping[str, Any], invalid: list[str], unsupported: list[str]) -> Scheme:
    """From a quantization_config of quant_method "bitsandbytes"."""
    chosen = [bits for bits in (8, 4) if config.get(f"load_in_{bits}bit", config.get(f"_load_in_{bits}bit")) is True]
    if len(chosen) != 1:
        invalid.append("quantization_config must set one of load_in_8bit and load_in_4bit")
        chosen = [8]
    return Scheme(chosen[0])


class _Int8(QuantizedMatrix):
    def __init__(self, parts: Parts) -> None:
        self.parts, self.problems, self.shape = parts.parts, parts.problems, (0, 0)
        if not parts.need("weight", "SCB") or not parts.check("weight", ("I8",), (-1, -1)):
            return
        outputs, inputs = parts.shape("weight")
        if not parts.check("SCB", ("F32", "F16", "BF16"), (outputs,)):
            return
        if "weight_format" in parts and not parts.check("weight_format", ("U8", "I8", "I32", "I64")):
            return
        if "weight_format" in parts and int(parts.array("weight_format").ravel()[:1].sum()) != 0:
            self.problems.append(f"{parts.parts['weight_format']} must be 0 (rows)")
        self.shape = (outputs, inputs)

    def kind(self, read: Read, problems: list[str]) -> Kind:
        check_scales(self.parts["SCB"], self._scales(read), problems)
        return Kind("bitsandbytes, 8 bit", 8, self.shape[1], whole=True)

    def codes(self, read: Read) -> Codes | None:
        return Codes(8, read(self.parts["weight"]), self._scales(read), None, self.shape[1])

    def floats(self, read: Read) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = read(self.parts["weight"]).astype(np.float32)
        weights *= self._scales(read)
        return weights

    def _scales(self, read: Read) -> NDArray[np.float32]:
        """[n, 1]"""
        scales: NDArray[np.float32] = floats_of(read(self.parts["SCB"]))[:, None] / np.float32(127)
        return scales


class _FourBit(QuantizedMatrix):
    def __init__(self, parts: Parts) -> None:
        self.parts, self.problems, self.shape = parts.parts, parts.problems, (0, 0)
        self._type = next((each for each in ("nf4", "fp4") if STATE + each in parts), "nf4")
        self._state: dict[str, Any] = {}
        if not parts.need("weight", "absmax", "quant_map", STATE + self._type):
            return
        if not parts.check("quant_map", ("F32",), (16,)) or not self._read_state(parts):
            return
        outputs, inputs = self._state["shape"]
        blocks = -(-outputs * inputs // self._state["blocksize"])
        stored, size = parts.shape("weight"), parts.array("weight").nbytes
        if size != -(-outputs * inputs // 2):
            self.problems.append(f"{parts.parts['weight']} is {list(stored)}, {size} bytes, for {[outputs, inputs]}")
        if "nested_absmax" in parts:
            nested = -(-blocks // self._state["nested_blocksize"])
            if parts.need("nested_quant_map") and parts.check("nested_quant_map", ("F32",), (256,)):
                parts.check("absmax", ("U8",), (blocks,))
                parts.check("nested_absmax", ("F32",), (nested,))
        else:
            parts.check("absmax", ("F32",), (blocks,))
        self.shape = (outputs, inputs)

    def _read_state(self, parts: Parts) -> bool:
        name = parts.parts[STATE + self._type]
        if not parts.check(STATE + self._type, ("U8",), (-1,)):
            return False
        raw = parts.array(STATE + self._type)[: MAX_STATE + 1].tobytes()
        try:
            state = parse_json(raw.decode("utf-8")) if len(raw) <= MAX_STATE else None
        except ValueError:
            state = None
        if not isinstance(state, dict):
            self.problems.append(f"{name} must be a JSON object, it is not")
            return False
        shape, count = state.get("shape"), len(self.problems)
        if not isinstance(shape, list) or len(shape) != 2 or not all(_is_size(each) for each in shape):
            self.problems.append(f"{name} must have a shape of two numbers, got {shape!r:.80}")
        nested = ["nested_blocksize"] if "nested_absmax" in parts else []
        for key in ("blocksize", *nested):
            if not _is_size(state.get(key)):
                self.problems.append(f"{name} must have a {key} > 0, got {state.get(key)!r:.80}")
        if nested and not _is_number(state.get("nested_offset")):
            self.problems.append(f"{name} must have a number nested_offset, got {state.get('nested_offset')!r:.80}")
        self._state = state
        return len(self.problems) == count

    def kind(self, read: Read, problems: list[str]) -> Kind:
        check_scales(self.parts["absmax"], self._absmax(read), problems)
        check_scales(self.parts["quant_map"], read(self.parts["quant_map"]), problems)
        return Kind(f"bitsandbytes, {self._type}")

    def codes(self, read: Read) -> Codes | None:
        return None

    def floats(self, read: Read) -> NDArray[np.float32]:
        packed = np.ascontiguousarray(read(self.parts["weight"])).view(np.uint8).ravel()
        values = read(self.parts["quant_map"]).astype(np.float32)
        pairs = np.stack([values[np.arange(256) >> 4], values[np.arange(256) & 15]], axis=1)  # of each byte
        count = self.shape[0] * self.shape[1]
        weights = np.take(pairs, packed, axis=0).reshape(-1)[:count]
        block, absmax = self._state["blocksize"], self._absmax(read)
        whole = count // block * block
        weights[:whole].reshape(-1, block)[...] *= absmax[: whole // block, None]
        if whole < count:
            weights[whole:] *= absmax[-1]
        return weights.reshape(self.shape)

    def _absmax(self, read: Read) -> NDArray[np.float32]:
        """float32 [blocks]"""
        absmax = read(self.parts["absmax"])
        if "nested_absmax" not in self.parts:
            return floats_of(absmax)
        table = read(self.parts["nested_quant_map"]).astype(np.float32)
        outer = read(self.parts["nested_absmax"]).astype(np.float32)
        sizes: NDArray[np.float32] = table[absmax] * outer[np.arange(len(absmax)) // self._state["nested_blocksize"]]
        sizes += np.float32(self._state["nested_offset"])
        return sizes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31
