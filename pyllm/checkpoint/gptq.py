"""Checkpoints of GPTQ and AWQ: `qweight`, `qzeros`, `scales` (and `g_idx`) in the place of a module's weight.

Layouts, as AutoGPTQ 0.7 and GPTQModel 7 (GPTQ) and AutoAWQ 0.2 (AWQ) write them; int32 words hold 32 / bits integers,
low bits first, weight = scale * (code - zero):
  GPTQ       qweight [k * bits / 32, n], qzeros [groups, n * bits / 32], scales [groups, n], g_idx [k] (each input's
             group). A stored zero is one less than the zero point, except in the format "gptq_v2".
  AWQ gemm   qweight [k, n / 8], qzeros [groups, n / 8], scales [groups, n]; a word holds outputs 0 2 4 6 1 3 5 7.
  AWQ gemv   qweight [n, k / 8], qzeros [n, w], scales [n, 8 * w], with w >= groups / 8 for alignment.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import (
    Codes,
    Kind,
    Parts,
    QuantizedMatrix,
    Read,
    check_order,
    check_scales,
    floats_of,
    half_holds,
    unpack_bytes,
    unpack_columns,
    unpack_rows,
)
from .mapped import TensorEntry

ROLES = ("qweight", "qzeros", "scales", "g_idx")
SCALES = ("F16", "BF16", "F32")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ROWS = 256  # outputs dequantised together


@dataclass(frozen=True)
class Scheme:
    """method "gptq" or "awq"; layout "gptq", "gptq_v2", "gemm" or "gemv"; group_size 0: all inputs."""

    method: str
    layout: str
    bits: int
    group_size: int

    def group(self, inputs: int) -> int:
        return self.group_size or max(inputs, 1)

    def label(self) -> str:
        groups = f"groups of {self.group_size}" if self.group_size else "one scale an output"
        layout = "" if self.layout == self.method else f" ({self.layout})"
        return f"{self.method}{layout}, {self.bits} bit, {groups}"

    def collect(self, entries: dict[str, TensorEntry]) -> dict[str, QuantizedMatrix]:
        """Matrices by the name that their weight would have."""
        found: dict[str, dict[str, str]] = {}
        for name in entries:
            base, _, role = name.rpartition(".")
            if role in ROLES:
                found.setdefault(base, {})[role] = name
        kind = {"gemm": _AwqGemm, "gemv": _AwqGemv}.get(self.layout, _Gptq)
        return {f"{base}.weight": kind(self, Parts(base, entries, parts)) for base, parts in found.items()}


def parse_gptq(config: Mapping[str, Any], invalid: list[str], unsupported: list[str]) -> Scheme:
    """From a quantization_config of quant_method "gptq", or a quantize_config.json."""
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        unsupported.append(f"quantization_config: GPTQ checkpoints of format {layout!r:.40}")
    if config.get("is_marlin_format"):
        unsupported.append("quantization_config: GPTQ checkpoints in the Marlin layout")
    dynamic = config.get("dynamic")
    if isinstance(dynamic, Mapping) and any(not str(name).startswith("-:") for name in dynamic):
        unsupported.append("quantization_config: GPTQ with other settings for some modules (dynamic)")
    bits = _bits(config.get("bits"), (4, 8), "GPTQ", invalid, unsupported)
    return Scheme("gptq", str(layout), bits, _group_size(config.get("group_size", 128), invalid))


def parse_awq(config: Mapping[str, Any], invalid: list[str], unsupported: list[str]) -> Scheme:
    """From a quantization_config of quant_method "awq", or AutoAWQ's quant_config.json."""
    layout = str(config.get("version") or config.get("format") or "gemm").lower()
    if layout not in ("gemm", "gemv"):
        unsupported.append(f"quantization_config: AWQ checkpoints of version {layout!r:.40}")
    if config.get("zero_point", True) is not True:
        unsupported.append("quantization_config: AWQ without zero points")
    bits = _bits(config.get("bits", config.get("w_bit", 4)), (4,), "AWQ", invalid, unsupported)
    group_size = config.get("group_size", config.get("q_group_size", 128))
    return Scheme("awq", layout, bits, _group_size(group_size, invalid))


def _bits(value: Any, known: tuple[int, ...], method: str, invalid: list[str], unsupported: list[str]) -> int:
    if type(value) is not int:
        invalid.append(f"quantization_config.bits must be a whole number, got {value!r:.40}")
    elif value not in known:
        unsupported.append(f"quantization_config: {method} of {value} bits")
    return value if value in known else known[0]


def _group_size(value: Any, invalid: list[str]) -> int:
    if type(value) is int and (value == -1 or 0 < value < 2**31):
        return max(value, 0)
    invalid.append(f"quantization_config.group_size must be a number > 0, or -1, got {value!r:.40}")
    return 0


class _Matrix(QuantizedMatrix):
    """What the three layouts share. `_table` gives codes and, by output and group, zeros and scales."""

    def __init__(self, scheme: Scheme, parts: Parts) -> None:
        self.parts, self.problems = parts.parts, parts.problems
        self.shape = (0, 0)
        self._scheme = scheme
        if parts.need("qweight", "qzeros", "scales") and self._check(parts):
            self.shape = self._measure(parts)
            if 0 in self.shape:
                self.problems.append(f"{self.parts['qweight']} must hold weights, it is {list(parts.shape('qweight'))}")
                self.shape = (0, 0)

    def _check(self, parts: Parts) -> bool:
        checks = [
            parts.check("qweight", ("I32", "U32"), (-1, -1)),
            parts.check("qzeros", ("I32", "U32"), (-1, -1)),
            parts.check("scales", SCALES, (-1, -1)),
            "g_idx" not in parts or parts.check("g_idx", ("I32", "I64"), (-1,)),
        ]
        return all(checks)

    @abstractmethod
    def _measure(self, parts: Parts) -> tuple[int, int]:
        """(outputs, inputs), with what contradicts them in `problems`."""

    def _scales(self, read: Read) -> NDArray[np.float32]:
        """[groups, n]"""
        return floats_of(read(self.parts["scales"]))

    @abstractmethod
    def _zeros(self, read: Read) -> NDArray[np.uint8]:
        """[groups, n]"""

    @abstractmethod
    def _codes(self, read: Read) -> NDArray[np.uint8]:
        """[n, k]"""

    def _order(self, read: Read, problems: list[str]) -> NDArray[np.int64] | None:
        """Each input's group, where inputs of a group are not neighbours."""
        return None

    @property
    def _middle(self) -> int:
        return 1 << (self._scheme.bits - 1)

    def kind(self, read: Read, problems: list[str]) -> Kind:
        scales = self._scales(read)
        check_scales(self.parts["scales"], scales, problems)
        label, group = self._scheme.label(), self._scheme.group(self.shape[1])
        if self._order(read, problems) is not None:
            return Kind(f"{label}, inputs in another order (desc_act)")
        zeros = bool((self._zeros(read) != self._middle).any())
        if self._scheme.bits == 8 and (group < self.shape[1] or zeros):
            return Kind(label)
        if self._scheme.bits == 4 and not half_holds(scales):
            return Kind(f"{label}, scales beyond float16")
        return Kind(label, self._scheme.bits, group, zeros, whole=group >= self.shape[1])

    def codes(self, read: Read) -> Codes | None:
        codes: NDArray[Any] = self._codes(read)
        scales = np.ascontiguousarray(self._scales(read).T)
        group = self._scheme.group(self.shape[1])
        if self._scheme.bits == 8:
            return Codes(8, (codes ^ np.uint8(128)).view(np.int8), scales, None, group)
        zeros = np.ascontiguousarray(self._zeros(read).T)
        return Codes(4, codes, scales, zeros if (zeros != self._middle).any() else None, group)

    def floats(self, read: Read) -> NDArray[np.float32]:
        order = self._order(read, [])
        if order is None:
            order = np.arange(self.shape[1]) // self._scheme.group(self.shape[1])
        codes, zeros, scales = self._codes(read), self._zeros(read), self._scales(read)
        weights = codes.astype(np.float32)
        for begin in range(0, self.shape[0], ROWS):
            part = weights[begin : begin + ROWS]
            part -= zeros[order, begin : begin + ROWS].T
            part *= scales[order, begin : begin + ROWS].T
        return weights


class _Gptq(_Matrix):
    def _measure(self, parts: Parts) -> tuple[int, int]:
        bits = self._scheme.bits
        words, outputs = parts.shape("qweight")
        inputs = parts.shape("g_idx")[0] if "g_idx" in parts else words * (32 // bits)
        groups = -(-inputs // self._scheme.group(inputs))
        parts.check("qweight", ("I32", "U32"), (-(-inputs * bits // 32), outputs))
        parts.check("qzeros", ("I32", "U32"), (groups, -(-outputs * bits // 32)))
        parts.check("scales", SCALES, (groups, outputs))
        return outputs, inputs

    def _codes(self, read: Read) -> NDArray[np.uint8]:
        return self._unpack(read(self.parts["qweight"]).T, self.shape[1])

    def _zeros(self, read: Read) -> NDArray[np.uint8]:
        zeros = self._unpack(read(self.parts["qzeros"]), self.shape[0])
        if self._scheme.layout == "gptq":
            zeros = zeros + np.uint8(1)
            zeros &= np.uint8(2 * self._middle - 1)  # 0 was stored as -1
        return zeros

    def _unpack(self, words: NDArray[Any], count: int) -> NDArray[np.uint8]:
        if self._scheme.bits == 8:
            return unpack_bytes(words, count)
        return unpack_rows(words, count)

    def _order(self, read: Read, problems: list[str]) -> NDArray[np.int64] | None:
        if "g_idx" not in self.parts:
            return None
        inputs, group = self.shape[1], self._scheme.group(self.shape[1])
        order = read(self.parts["g_idx"]).astype(np.int64)
        return check_order(self.parts["g_idx"], order, group, -(-inputs // group), problems)


class _AwqGemm(_Matrix):
    def _measure(self, parts: Parts) -> tuple[int, int]:
        inputs, words = parts.shape("qweight")
        groups = -(-inputs // self._scheme.group(inputs))
        parts.check("qzeros", ("I32", "U32"), (groups, words))
        parts.check("scales", SCALES, (groups, 8 * words))
        return 8 * words, inputs

    def _codes(self, read: Read) -> NDArray[np.uint8]:
        return unpack_columns(read(self.parts["qweight"]), AWQ_ORDER)

    def _zeros(self, read: Read) -> NDArray[np.uint8]:
        zeros: NDArray[np.uint8] = unpack_columns(read(self.parts["qzeros"]), AWQ_ORDER).T
        return zeros


class _AwqGemv(_Matrix):
    def _measure(self, parts: Parts) -> tuple[int, int]:
        outputs, words = parts.shape("qweight")
        inputs = 8 * words
        self._groups = -(-inputs // self._scheme.group(inputs))
        width = max(parts.shape("qzeros")[1], -(-self._groups // 8))
        parts.check("qzeros", ("I32", "U32"), (outputs, width))
        parts.check("scales", SCALES, (outputs, 8 * width))
        return outputs, inputs

    def _codes(self, read: Read) -> NDArray[np.uint8]:
        return unpack_rows(read(self.parts["qweight"]), self.shape[1])

    def _zeros(self, read: Read) -> NDArray[np.uint8]:
        zeros: NDArray[np.uint8] = unpack_rows(read(self.parts["qzeros"]), self._groups).T
        return zeros

    def _scales(self, read: Read) -> NDArray[np.float32]:
        scales: NDArray[np.float32] = floats_of(read(self.parts["scales"])[:, : self._groups]).T
        return scales
