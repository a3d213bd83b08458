"""The CUDA kernels over rows (cuda/rows.cu) against their float64 definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device

from pyllm.program import reference

EPS = 2.0**-24
TYPES = ("float32", "bfloat16", "float16")
UNIT = {"float32": EPS, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit in the last place
FORMATS = {"f32": 0, "bf16": 1, "f16": 2, "i8": 3, "i8_fast": 4, "i4_g32": 5, "i4_g128": 6, "i4z_g32": 7, "i4z_g128": 8}
WIDTHS = (1, 3, 40, 64, 100, 300)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def up(n: int, to: int) -> int:
    return -(-n // to) * to


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (reference.round_bf16(values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


class Rows:
    """Rows in device memory as views have them: a multiple of 64 columns, NaN beyond the last."""

    def __init__(self, on: Device, values: np.ndarray, dtype: str = "float32") -> None:
        self.on, self.dtype, self.shape, self.ld = on, dtype, values.shape, up(values.shape[1], 64)
        padded = np.full((len(values), self.ld), np.nan, np.float32)
        padded[:, : values.shape[1]] = values
        self.array = on.to_device(narrow(padded, dtype))

    @property
    def view(self) -> tuple[int, int, str]:
        return self.on.pointer(self.array), self.ld, self.dtype

    def values(self) -> np.ndarray:
        return widened(self.on.to_host(self.array), self.dtype)[:, : self.shape[1]]


def result(on: Device, rows: int, cols: int, dtype: str = "float32") -> Rows:
    return Rows(on, np.full((rows, cols), np.nan, np.float32), dtype)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: Any, dtype: str = "float32") -> None:
    assert found.shape == expected.shape
    excess = np.abs(found - expected) / (tolerance + np.abs(expected) * (0 if dtype == "float32" else UNIT[dtype]))
    assert excess.max() <= 1, f"{excess.max():.3g} times too far at {np.unravel_index(excess.argmax(), excess.shape)}"


class Table:
    """A matrix [n, k] as launch.h lays it out, filled with codes drawn at random, and what its elements are."""

    def __init__(self, on: Device, name: str, n: int, k: int, seed: int) -> None:
        random = np.random.RandomState(seed)
        group = 32 if name.endswith("g32") else 128
        self.ld = up(k, 128 if name.startswith("i4") else 64)
        rows, scales, zeros = up(n, 16), np.zeros(1, np.float32), np.zeros(0, np.uint8)
        if name.startswith("i4"):
            stored = random.randint(0, 16, (rows, self.ld))
            scales = np.exp(random.standard_normal((rows, self.ld // group))).astype(np.float16)
            zeros = random.randint(0, 16, scales.shape).astype(np.uint8) if name.startswith("i4z") else zeros
            zero = np.repeat(zeros, group, 1).astype(int) if zeros.size else 8
            self.values = np.repeat(scales, group, 1).astype(np.float32) * (stored - zero).astype(np.float32)
            codes = pack_int4(stored)
        elif name.startswith("i8"):
            codes = random.randint(-128, 128, (rows, self.ld)).astype(np.int8)
            scales = np.exp(random.standard_normal(rows)).astype(np.float32)
            self.values = scales[:, None] * codes.astype(np.float32)
        else:
            dtype = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[name]
            codes = narrow(random.standard_normal((rows, self.ld)), dtype)
            self.values = widened(codes, dtype)
        self.values = self.values[:n, :k]
        self.held = [on.to_device(array) for array in (codes, scales, zeros)]
        at = [on.pointer(array) for array in self.held]
        self.matrix = {"format": FORMATS[name], "codes": at[0], "scales": at[1], "zeros": at[2] if zeros.size else 0}
        self.matrix |= {"n": n, "k": k, "ld": self.ld}


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """int [rows, ld] -> uint32 [rows, ld / 8]: word j of piece t of each 128 codes holds k = 32 j + 8 t + 2 (p % 4) +
    p / 4 in nibble p."""
    words = np.zeros((len(codes), codes.shape[1] // 128, 4, 4), np.uint32)
    by_chunk = codes.reshape(len(codes), -1, 128)
    for t in range(4):
        for j in range(4):
            for p in range(8):
                code = by_chunk[:, :, 32 * j + 8 * t + 2 * (p % 4) + p // 4]
                words[:, :, t, j] |= code.astype(np.uint32) << np.uint32(4 * p)
    return words.reshape(len(codes), -1)


class Step:
    def __init__(self, on: Device, **arrays: Any) -> None:
        self.held = {name: on.to_device(np.array(array, np.int32)) for name, array in arrays.items()}
        self.step: dict[str, int] = {name: on.pointer(array) for name, array in self.held.items()}
        self.step |= {"rows": len(arrays.get("ids", ())), "logits": len(arrays.get("logit_rows", ()))}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cols", [1, 64, 300])
def test_embed(device: Device, name: str, cols: int) -> None:
    table, positions = Table(device, name, 20, cols, 1), Table(device, "f32", 12, cols, 2)
    types = Table(device, name, 3, cols, 3)
    ids, at, kinds = [0, 19, 7, 0], [0, 3, 9, 99], [0, 2, 1, 0]
    step = Step(device, ids=ids, positions=at, types=kinds, sequence=[0, 0, 1, -1])
    for dtype in TYPES:
        out = result(device, 4, cols, dtype)
        matrices = (table.matrix, positions.matrix, types.matrix)
        device.module.embed(out.view, cols, step.step, *matrices, position_offset=2, scale=1.5)
        expected = reference.embed(
            ids[:3],
            table.values,
            positions=at[:3],
            position_table=positions.values,
            position_offset=2,
            scale=1.5,
            types=kinds[:3],
            type_table=types.values,
        )
        assert_close(out.values()[:3], expected, 6 * EPS * (np.abs(expected) + 100), dtype)
        assert np.isfinite(out.values()).all()
    step.step["types"] = 0
    out = result(device, 4, cols)
    device.module.embed(out.view, cols, step.step, table.matrix, None, types.matrix, by_position=True)
    expected = table.values[[0, 3, 9]].astype(np.float64) + types.values[[0, 0, 0]]
    assert_close(out.values()[:3], expected, EPS * (np.abs(expected) + 1e-30))


@pytest.mark.parametrize("n", [1, 16, 300])
def test_rotary(device: Device, n: int) -> None:
    frequencies = (10000.0 ** -(np.arange(n) / n)).astype(np.float32)
    held = device.to_device(frequencies)
    positions = [0, 1, 1000, 131071, 5]
    step = Step(device, ids=[0] * 5, positions=positions, sequence=[0, 0, 1, 1, -1])
    out = result(device, 5, 2 * n)
    device.module.rotary(out.view, device.pointer(held), n, 1.25, step.step)
    expected = reference.rotary(positions[:4], frequencies, 1.25)
    assert_close(out.values()[:4], expected, 1e-30 + 2.01 * EPS * np.abs(expected))  # the next float at most
    assert np.isfinite(out.values()).all()


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("n", [*WIDTHS, 4100, 8500, 17000])
def test_norm(device: Device, n: int, rms: bool) -> None:
    x, weight, bias, residual = draw(1, 3, n) * 3 + 1, draw(2, n), draw(3, n), draw(4, 3, n)
    at = [device.to_device(vector) for vector in (weight, bias)]
    for dtype, with_residual in [("float32", True), ("bfloat16", False), ("float16", True)]:
        rows, added = Rows(device, x, dtype), Rows(device, residual)
        out = result(device, 3, n, dtype)
        bias_at = 0 if rms else device.pointer(at[1])
        device.module.norm(
            rows.view, out.view, 3, n, rms, device.pointer(at[0]), bias_at, 1e-5, added.view if with_residual else None
        )
        entered = rows.values()
        expected = (
            reference.rms_norm(entered, weight, 1e-5) if rms else reference.layer_norm(entered, weight, bias, 1e-5)
        )
        size = np.abs(weight) * (1 + np.abs(entered)) + np.abs(bias) + np.abs(residual)
        expected = expected + (residual if with_residual else 0)
        error = (20 + n / 128) * EPS  # of sums over n / 1024 columns a thread at least, then a tree; n of 1: x - mean
        assert_close(out.values(), expected, error * size * (300 if n <= 3 and not rms else 1), dtype)
        alone = result(device, 1, n, dtype)
        part = Rows(device, x[2:], dtype)
        rest = Rows(device, residual[2:])
        device.module.norm(
            part.view, alone.view, 1, n, rms, device.pointer(at[0]), bias_at, 1e-5, rest.view if with_residual else None
        )
        assert (alone.values() == out.values()[2:]).all()


@pytest.mark.parametrize("rms", [True, False])
def test_head_norm(device: Device, rms: bool) -> None:
    """Narrow heads, one wide group, weights shared and not, columns between; in place too."""
    widths = [(3, 40, 5, True), (210, 1, 2, False), (300, 600, 2, False), (1502, 70, 3, True)]
    cols, x = 1720, draw(1, 2, 1720)
    entry = np.dtype(
        [("begin", "i8"), ("width", "i8"), ("count", "i8"), ("weight", "u8"), ("bias", "u8"), ("step", "i8")]
    )
    slices, held, expected = np.zeros(len(widths), entry), [], x.astype(np.float64)
    for i, (begin, width, count, shared) in enumerate(widths):
        size = width if shared else width * count
        weight, bias = draw(2 + i, size), draw(20 + i, size)
        held += [device.to_device(weight), device.to_device(bias)]
        bias_at = 0 if rms else device.pointer(held[-1])
        slices[i] = (begin, width, count, device.pointer(held[-2]), bias_at, 0 if shared else width)
        for g in range(count):
            own = slice(0, width) if shared else slice(g * width, (g + 1) * width)
            at = slice(begin + g * width, begin + (g + 1) * width)
            if rms:
                expected[:, at] = reference.rms_norm(x[:, at], weight[own], 1e-6)
            else:
                expected[:, at] = reference.layer_norm(x[:, at], weight[own], bias[own], 1e-6)
    table = device.to_device(slices.view(np.uint8))
    tolerance = np.full(x.shape, 60 * EPS) * (1 + np.abs(expected))
    tolerance[:, 210:212] *= 300  # x - mean of one column
    for dtype in TYPES:
        rows = Rows(device, x, dtype)
        out = result(device, 2, cols, dtype)
        device.module.head_norm(rows.view, out.view, 2, cols, rms, device.pointer(table), len(widths), 1e-6)
        if dtype == "float32":
            assert_close(out.values(), expected, tolerance)
        before = out.values()
        device.module.head_norm(rows.view, rows.view, 2, cols, rms, device.pointer(table), len(widths), 1e-6)
        assert (rows.values() == before).all()


@pytest.mark.parametrize("cols", WIDTHS)
def test_select_and_widen(device: Device, cols: int) -> None:
    x = draw(1, 5, cols)
    step = Step(device, ids=[0] * 5, logit_rows=[1, 4, -1])
    for dtype in TYPES:
        rows = Rows(device, x, dtype)
        for other in TYPES:
            out = result(device, 3, cols, other)
            device.module.select(rows.view, out.view, cols, step.step)
            expected = widened(narrow(rows.values()[[1, 4]], other), other)
            assert (out.values()[:2] == expected).all()
            assert np.isfinite(out.values()).all()
        dense = device.to_device(np.full((5, cols), np.nan, np.float32))
        device.module.widen(rows.view, 5, cols, device.pointer(dense))
        assert (device.to_host(dense) == rows.values()).all()
