"""Packed matrices for tests of the CUDA matmuls, written from the layout's description in cuda/launch.h alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from cuda_arrays import Device, narrow, rows, widen
from numpy.typing import NDArray

from pyllm.program.program import ActivationName

F32, BF16, F16, I8, I4_G32, I4_G128, I4Z_G32, I4Z_G128 = 0, 1, 2, 3, 5, 6, 7, 8  # csrc/kernels.h Format
GROUPS = {I4_G32: 32, I4_G128: 128, I4Z_G32: 32, I4Z_G128: 128}
NAMES = {F32: "float32", BF16: "bfloat16", F16: "float16"}
ACTIVATIONS = get_args(ActivationName)  # in the order of csrc/kernels.h
# Formats with the type that activations take.
CASES = [
    (F32, "float32"),
    (BF16, "bfloat16"),
    (F16, "float16"),
    (I8, "bfloat16"),
    (I8, "float16"),
    (I8, "float32"),
    (I4_G32, "bfloat16"),
    (I4_G128, "float16"),
    (I4Z_G32, "float16"),
    (I4Z_G128, "bfloat16"),
    (I4Z_G32, "float32"),
]
Array = NDArray[Any]


def rounded(x: Any, name: str) -> Array:
    return widen(narrow(x, name), name).astype(np.float64)


def up(x: int, to: int) -> int:
    return -(-x // to) * to


@dataclass
class Plain:
    """weight [N, K] float64: what the packed one stands for, gate rows first where it is gated; bias [N]."""

    format: int
    weight: Array
    bias: Array | None
    gated: bool
    ld: int
    codes: Array
    scales: Array
    zeros: Array | None
    packed_bias: Array | None

    def packed_values(self) -> Array:
        """[128 at least, K] float64 rows in packed order, zero past the last; int8 without the scales."""
        n, k = self.weight.shape
        values = np.zeros((up(n, 128), k))
        order = gate_first(n) if self.gated else np.arange(n)
        values[order] = self.weight
        if self.format == I8:
            values[:n] /= self.scales[:n, None]
        return values

    def on(self, device: Device, keep: list[Any]) -> dict[str, Any]:
        """The dict that bindings take; the arrays are appended to `keep`, whose owner outlives the call."""

        def address(array: Array | None) -> int:
            if array is None or not array.size:
                return 0
            keep.append(device.to_device(array))
            return int(device.pointer(keep[-1]))

        n, k = self.weight.shape
        return {
            "format": self.format,
            "codes": address(self.codes),
            "scales": address(self.scales),
            "zeros": address(self.zeros),
            "bias": address(self.packed_bias),
            "n": n,
            "k": k,
            "ld": self.ld,
            "gated": self.gated,
        }


def _int4(n16: int, k: int, format: int, rng: Any) -> tuple[Array, Array, Array, Array | None, int]:
    """Codes, scales, zeros and values of random int4 weights [N16, K]."""
    group, ld = GROUPS[format], up(k, 128)
    scales = (0.02 + 0.1 * rng.random((n16, ld // group))).astype(np.float16)
    with_zeros = format in (I4Z_G32, I4Z_G128)
    zeros = rng.integers(0, 17, scales.shape).astype(np.uint8) if with_zeros else np.full(scales.shape, 8, np.uint8)
    zeros[:, k // group :] = np.minimum(zeros[:, k // group :], 15)  # so that padding can be zero
    wide_zeros = np.repeat(zeros, group, 1).astype(np.int64)
    codes = rng.integers(0, 16, (n16, ld))
    codes[:, k:] = wide_zeros[:, k:]
    values = np.repeat(scales.astype(np.float64), group, 1) * (codes - wide_zeros)
    pieces = np.zeros((n16, ld // 128, 4, 4), np.uint32)  # [t][j]
    for t in range(4):
        for j in range(4):
            for p in range(8):
                at = 32 * j + 8 * t + 2 * (p % 4) + p // 4
                pieces[:, :, t, j] |= codes[:, at::128].astype(np.uint32) << np.uint32(4 * p)
    return pieces, scales, values[:, :k], zeros if with_zeros else None, ld


def plain(format: int, n: int, k: int, rng: Any, *, gated: bool = False, bias: bool = False) -> Plain:
    """A random matrix of N outputs (gated: gate and up rows together) and K inputs."""
    n16 = up(n, 16)
    used = n16 if gated else n  # the last gates and ups may stand beyond row n
    dense = np.zeros((n16, k), np.float32)
    dense[:used] = rng.standard_normal((used, k)) / np.sqrt(k)
    scales: Array = np.zeros(0, np.float32)
    zeros, ld = None, up(k, 64)
    if format in GROUPS:
        codes, scales, values, zeros, ld = _int4(n16, k, format, rng)
    elif format == I8:
        integers = rng.integers(-128, 128, (n16, k)).astype(np.int8)
        scales = (0.001 + 0.01 * rng.random(n16)).astype(np.float32)
        values = integers * scales.astype(np.float64)[:, None]
        codes = np.zeros((n16, ld), np.int8)
        codes[:, :k] = integers
    else:
        stored = narrow(dense, NAMES[format])
        values = widen(stored, NAMES[format]).astype(np.float64)
        codes = np.zeros((n16, ld), stored.dtype)
        codes[:, :k] = stored
    values = values[:used]
    packed_bias = np.zeros(n16, np.float32) if bias else None
    if packed_bias is not None:
        packed_bias[:used] = rng.standard_normal(used)
    wanted_bias = None if packed_bias is None else packed_bias[:used].astype(np.float64)
    if gated:
        order = gate_first(n)
        values = values[order]
        wanted_bias = None if wanted_bias is None else wanted_bias[order]
    return Plain(format, values, wanted_bias, gated, ld, codes, scales, zeros, packed_bias)


def gate_first(n: int) -> Array:
    """Packed rows in the order gate rows, up rows: packed row 16 i + r is the gate of output 8 i + r, r < 8."""
    outputs = np.arange(n // 2)
    gates = outputs // 8 * 16 + outputs % 8
    return np.concatenate([gates, gates + 8])


def rows_of(device: Device, x: Any, name: str) -> tuple[Any, tuple[int, int, str]]:
    """Device rows of x [M, n], NaN beyond its columns, and the tuple that bindings take."""
    array = device.to_device(rows(x, name))
    return array, (device.pointer(array), array.shape[1], name)
