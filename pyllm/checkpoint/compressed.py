"""Checkpoints of compressed-tensors (llm-compressor's, vLLM's, and what `pyllm quantize` writes): "pack-quantized" of 4
and 8 bits, "int-quantized" of 8 bits. Matrices are [outputs, inputs].

Layouts, as compressed-tensors 0.20 writes them; weight = weight_scale * (code - weight_zero_point):
  pack-quantized  weight_packed int32 [n, k * bits / 32] (codes + 2^(bits-1), low bits first), weight_scale [n, groups],
                  weight_shape int64 [2]; asymmetric: weight_zero_point int32 [n * bits / 32, groups], packed along n
  int-quantized   weight int8 [n, k], weight_scale [n, groups] (or [1]); asymmetric: weight_zero_point int8 likewise
  both            weight_g_idx [k]: each input's group, where the order of the inputs was changed (actorder "group")
What a checkpoint says of activations is not followed: they are never rounded more coarsely than our own formats do.
"""

from __future__ import annotations

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
    unpack_rows,
)
from .mapped import TensorEntry

ROLES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")
LAID_OUT = ("weight", "weight_packed", "weight_scale")
FORMATS = ("pack-quantized", "int-quantized")
SCALES = ("F16", "BF16", "F32")
INTEGERS = ("I8", "I16", "I32", "I64")
ROWS = 256  # outputs dequantised together


@dataclass(frozen=True)
class Weights:
    """How one group of modules is quantised. group_size 0: one scale an output, or one for all."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Scheme:
    """All groups of the configuration. Which of them a module belongs to shows in its tensors' shapes."""

    groups: tuple[Weights, ...]
    layout: str
    method: str = "compressed-tensors"

    def label(self) -> str:
        kinds = " and ".join(sorted({f"{each.bits} bit, {_grouping(each.group_size)}" for each in self.groups}))
        return f"{self.method} ({self.layout}), {kinds}"

    def collect(self, entries: dict[str, TensorEntry]) -> dict[str, QuantizedMatrix]:
        """Matrices by the name that their weight would have."""
        found: dict[str, dict[str, str]] = {}
        for name in entries:
            base, _, role = name.rpartition(".")
            if role in ROLES:
                found.setdefault(base, {})[role] = name
        for name, entry in entries.items():
            base, _, role = name.rpartition(".")
            if role == "weight" and (base in found or entry.dtype == "I8"):
                found.setdefault(base, {})[role] = name
            if role in ACTIVATIONS and base in found:
                found[base][role] = name
        return {f"{base}.weight": _Matrix(self, Parts(base, entries, parts)) for base, parts in found.items()}


def parse_compressed(config: Mapping[str, Any], invalid: list[str], unsupported: list[str]) -> Scheme:
    """From a quantization_config of quant_method "compressed-tensors"."""
    overall = config.get("format")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(g, Mapping) for g in groups.values()):
        invalid.append(f"quantization_config.config_groups must be an object of objects, got {groups!r:.80}")
        groups = {}
    layouts = sorted({str(group.get("format") or overall) for group in groups.values()})
    for layout in layouts:
        if layout not in FORMATS:
            known = " and ".join(FORMATS)
            unsupported.append(f"quantization_config: compressed-tensors of format {layout!r:.40} (supported: {known})")
    if config.get("sparsity_config"):
        unsupported.append("quantization_config: compressed-tensors with sparse weights (sparsity_config)")
    if config.get("transform_config"):
        unsupported.append("quantization_config: compressed-tensors with transforms (transform_config)")
    found = [_weights(str(name), group.get("weights"), invalid, unsupported) for name, group in groups.items()]
    return Scheme(tuple(dict.fromkeys(each for each in found if each)), " and ".join(layouts))


def _weights(name: str, weights: Any, invalid: list[str], unsupported: list[str]) -> Weights | None:
    """Notes what is not integers of 4 or 8 bits by groups, outputs or tensors."""
    where = f"quantization_config.config_groups.{name:.40}.weights"
    if not isinstance(weights, Mapping):
        invalid.append(f"{where} must be an object, got {weights!r:.80}")
        return None
    bits, kind, size = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if size and size != -1 else "channel")
    if kind != "int" or bits not in (4, 8):
        unsupported.append(f"{where} of type {kind!r:.40} and {bits!r:.40} bits (supported: 'int', 4 or 8)")
    if strategy not in ("group", "channel", "tensor"):
        unsupported.append(f"{where} of strategy {strategy!r:.40} (supported: 'group', 'channel', 'tensor')")
    if strategy == "group" and not (type(size) is int and 0 < size < 2**31):
        invalid.append(f"{where}.group_size must be a number > 0, got {size!r:.40}")
        return None
    return Weights(bits, int(size or 0) if strategy == "group" else 0) if bits in (4, 8) else None


def _grouping(size: int) -> str:
    return f"groups of {size}" if size else "one scale an output"


class _Matrix(QuantizedMatrix):
    def __init__(self, scheme: Scheme, parts: Parts) -> None:
        self.parts, self.problems = parts.parts, parts.problems
        self.shape = (0, 0)
        self._weights = Weights(8, 0)
        self._packed = "weight_packed" in parts
        if self._packed and "weight" in parts:
            self.problems.append(f"{parts.name} has both weight and weight_packed")
            return
        if not parts.need("weight_packed" if "weight" not in parts else "weight", "weight_scale"):
            return
        shape = self._packed_shape(parts) if self._packed else self._plain_shape(parts)
        if shape is not None and parts.check("weight_scale", SCALES) and self._choose(scheme, parts, *shape):
            self.shape = shape
            self._check_rest(parts)

    def _packed_shape(self, parts: Parts) -> tuple[int, int] | None:
        if not parts.need("weight_shape") or not parts.check("weight_packed", ("I32",), (-1, -1)):
            return None
        if not parts.check("weight_shape", INTEGERS, (2,)):
            return None
        outputs, inputs = map(int, parts.array("weight_shape"))
        if outputs == parts.shape("weight_packed")[0] and 0 < inputs < 2**31 and outputs:
            return outputs, inputs
        stored = list(parts.shape("weight_packed"))
        self.problems.append(f"{parts.parts['weight_shape']} is {[outputs, inputs]} for weight_packed {stored}")
        return None

    def _plain_shape(self, parts: Parts) -> tuple[int, int] | None:
        if not parts.check("weight", ("I8",), (-1, -1)):
            return None
        outputs, inputs = parts.shape("weight")
        return (outputs, inputs) if outputs and inputs else None

    def _choose(self, scheme: Scheme, parts: Parts, outputs: int, inputs: int) -> bool:
        """The configured group of modules whose bits and group size are those of the tensors."""
        scales = parts.shape("weight_scale")
        fitting = []
        for each in scheme.groups:
            words = -(-inputs * each.bits // 32)
            held = parts.shape("weight_packed") == (outputs, words) if self._packed else each.bits == 8
            groups = -(-inputs // (each.group_size or inputs))
            one = groups == 1 and scales in ((), (1,), (1, 1), (outputs,))
            if held and (scales == (outputs, groups) or one):
                fitting.append(Weights(each.bits, each.group_size if groups > 1 else 0))
        if len(set(fitting)) == 1:
            self._weights = fitting[0]
            return True
        stored = ", ".join(f"{role} {list(parts.shape(role))}" for role in parts.parts if role in LAID_OUT)
        self.problems.append(
            f"{parts.name} of {outputs} outputs and {inputs} inputs has {stored}, which is none of what "
            f"quantization_config says: {scheme.label()}"
        )
        return False

    def _check_rest(self, parts: Parts) -> None:
        (outputs, inputs), scales = self.shape, parts.shape("weight_scale")
        if "weight_zero_point" in parts:
            packed = (-(-outputs * self._weights.bits // 32), self._groups)
            if self._packed and parts.dtype("weight_zero_point") == "I32":
                parts.check("weight_zero_point", ("I32",), packed)
            else:
                parts.check("weight_zero_point", INTEGERS, scales)
        if "weight_g_idx" in parts:
            parts.check("weight_g_idx", ("I32", "I64"), (inputs,))

    @property
    def _groups(self) -> int:
        return -(-self.shape[1] // (self._weights.group_size or self.shape[1]))

    @property
    def _middle(self) -> int:
        return 1 << (self._weights.bits - 1)

    def kind(self, read: Read, problems: list[str]) -> Kind:
        scales = self._scales(read)
        check_scales(self.parts["weight_scale"], scales, problems)
        layout = "pack-quantized" if self._packed else "int-quantized"
        bits, group = self._weights.bits, self._weights.group_size
        label = f"compressed-tensors ({layout}), {bits} bit, {_grouping(group)}"
        if self._order(read, problems) is not None:
            return Kind(f"{label}, inputs in another order (g_idx)")
        zeros = self._zeros(read)
        if zeros is not None and not ((zeros >= 0) & (zeros < 2 * self._middle)).all():
            problems.append(f"{self.parts['weight_zero_point']} must lie in the range of {bits} bits, it does not")
        off = zeros is not None and bool((zeros != self._middle).any())
        if bits == 8 and (group or off):
            return Kind(label)
        if bits == 4 and not half_holds(scales):
            return Kind(f"{label}, scales beyond float16")
        return Kind(label, bits, group or self.shape[1], off, whole=not group)

    def codes(self, read: Read) -> Codes | None:
        scales, group = self._scales(read), self._weights.group_size or self.shape[1]
        if self._weights.bits == 8:
            return Codes(8, (self._integers(read) ^ np.uint8(128)).view(np.int8), scales, None, group)
        zeros = self._zeros(read)
        if zeros is not None and (zeros != self._middle).any():
            return Codes(4, self._integers(read), scales, zeros.astype(np.uint8), group)
        return Codes(4, self._integers(read), scales, None, group)

    def floats(self, read: Read) -> NDArray[np.float32]:
        order, zeros, scales = self._order(read, []), self._zeros(read), self._scales(read)
        if order is None:
            order = np.arange(self.shape[1]) // (self._weights.group_size or self.shape[1])
        weights = self._integers(read).astype(np.float32)
        for begin in range(0, self.shape[0], ROWS):
            part = weights[begin : begin + ROWS]
            part -= np.float32(self._middle) if zeros is None else zeros[begin : begin + ROWS][:, order]
            part *= scales[begin : begin + ROWS][:, order]
        return weights

    def _integers(self, read: Read) -> NDArray[np.uint8]:
        """[n, k], the middle being 8 or 128."""
        if self._packed:
            return self._unpack(read(self.parts["weight_packed"]), self.shape[1])
        codes: NDArray[np.uint8] = read(self.parts["weight"]).view(np.uint8) ^ np.uint8(128)
        return codes

    def _unpack(self, words: NDArray[Any], count: int) -> NDArray[np.uint8]:
        return unpack_rows(words, count) if self._weights.bits == 4 else unpack_bytes(words, count)

    def _scales(self, read: Read) -> NDArray[np.float32]:
        """[n, groups]"""
        scales = floats_of(read(self.parts["weight_scale"])).reshape(-1, self._groups)
        return np.ascontiguousarray(np.broadcast_to(scales, (self.shape[0], self._groups)))

    def _zeros(self, read: Read) -> NDArray[np.int32] | None:
        """[n, groups], the middle being 8 or 128."""
        if "weight_zero_point" not in self.parts:
            return None
        stored = read(self.parts["weight_zero_point"])
        packed = (-(-self.shape[0] * self._weights.bits // 32), self._groups)
        if self._packed and stored.dtype == np.int32 and stored.shape == packed:
            zeros: NDArray[np.int32] = self._unpack(stored.T, self.shape[0]).T.astype(np.int32)
            return zeros
        zeros = stored.astype(np.int32).reshape(-1, self._groups) + np.int32(self._middle)
        return np.broadcast_to(zeros, (self.shape[0], self._groups))

    def _order(self, read: Read, problems: list[str]) -> NDArray[np.int64] | None:
        """Each input's group, where inputs of a group are not neighbours."""
        if "weight_g_idx" not in self.parts or not self._weights.group_size:
            return None
        name = self.parts["weight_g_idx"]
        order = read(name).astype(np.int64)
        if (order == -1).all():  # written before the order was known
            return None
        return check_order(name, order, self._weights.group_size, self._groups, problems)
