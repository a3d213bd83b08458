"""The CUDA matmul for few rows against the float64 reference: every format and type, sizes that divide nothing, and the
same bits for a row whatever stands beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device, rows, widen
from cuda_matrices import (
    ACTIVATIONS,
    BF16,
    CASES,
    F32,
    I4_G32,
    I4_G128,
    I4Z_G32,
    I8,
    Plain,
    plain,
    rounded,
)

from pyllm.errors import DeviceError
from pyllm.program import reference

NONE, RMS, LAYER = 0, 1, 2
# Of a result's size: sums of a few hundred products in float32; "split": 16 bits of x; a narrow x is exact in the
# reference too.
TOLERANCE = {"float32": 2e-6, "split": 4e-5, "bfloat16": 3e-6, "float16": 3e-6}


class Run:
    """Device arrays of one matmul; call it for its result [M, outputs]."""

    def __init__(self, device: Device, w: Plain, type: str) -> None:
        self.device, self.w, self.type = device, w, type
        self.keep: list[Any] = []
        self.matrix = w.on(device, self.keep)
        self.outputs = w.weight.shape[0] // (2 if w.gated else 1)

    def address(self, array: Any) -> int:
        self.keep.append(self.device.to_device(array))
        return self.device.pointer(self.keep[-1])

    def rows(self, x: Any, name: str) -> tuple[int, int, str]:
        """x [M, n] in device memory, NaN beyond its columns."""
        wide = rows(x, name)
        return self.address(wide), wide.shape[1], name

    def __call__(
        self,
        x: Any,
        *,
        x_type: str = "",
        y_type: str = "float32",
        residual: Any = None,
        norm: tuple[int, Any, Any, float] | None = None,
        activation: str = "none",
        launcher: str = "linear_skinny",
        **options: float,
    ) -> Any:
        y_rows = self.rows(np.zeros((len(x), self.outputs)), y_type)
        y_array = self.keep[-1]
        if residual is not None:
            options["residual"] = self.rows(residual, "float32")
        if norm is not None:
            kind, weight, bias, eps = norm
            options["norm"] = (kind, self.address(weight), 0 if bias is None else self.address(bias), eps)
        x_rows = self.rows(x, x_type or self.type)
        number = ACTIVATIONS.index(activation)
        call = getattr(self.device.module, launcher)
        self.result = call(self.matrix, self.type, x_rows, len(x), y_rows, activation=number, **options)
        y = widen(self.device.to_host(y_array), y_type)
        assert np.isnan(y[:, self.outputs :]).all()  # nothing is written beyond the outputs
        return y[:, : self.outputs]


def error(y: Any, want: Any) -> float:
    return float(np.abs(y - want).max() / max(np.abs(want).max(), 1e-30))


def bound(format: int, type: str) -> float:
    return TOLERANCE["split" if type == "float32" and format != F32 else type]


# Rows reach each number of column tiles; outputs each number of tiles a block (the emulated device has 2
# multiprocessors); inputs end inside a lane's piece, a unit, and after several rounds of the warps.
SIZES = [
    (1, 33, 5),
    (5, 130, 40),
    (8, 1100, 21),
    (13, 70, 70),
    (20, 200, 36),
    (27, 300, 66),
    (40, 100, 20),
    (64, 90, 130),
]


@pytest.mark.parametrize(("format", "type"), CASES)
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_equals_the_reference(device: Device, format: int, type: str, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(k + n)
    w = plain(format, n, k, rng, bias=m % 2 == 1)
    x = rng.standard_normal((m, k))
    want = reference.linear(rounded(x, type), w.weight, w.bias)
    assert error(Run(device, w, type)(x), want) < bound(format, type)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("format", [F32, I4Z_G32])
def test_activations_of_plain_and_gated(device: Device, activation: str, format: int) -> None:
    type = "float32" if format == F32 else "float16"
    rng = np.random.default_rng(5)
    x = 3 * rng.standard_normal((3, 70))
    for gated in (False, True):
        w = plain(format, 44, 70, rng, gated=gated, bias=True)
        want = reference.linear(rounded(x, type), w.weight, w.bias, act=activation, gated=gated)
        assert error(Run(device, w, type)(x, activation=activation), want) < 2 * bound(format, type)


def test_activations_far_below_zero_vanish(device: Device) -> None:
    w = plain(F32, 8, 3, np.random.default_rng(14), bias=True)
    assert w.packed_bias is not None
    w.packed_bias[:] = [-np.inf, -1e38, -3e4, -50, *[np.nan] * 12]
    run = Run(device, w, "float32")
    for activation in ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu"):
        y = run(np.zeros((1, 3)), activation=activation)
        assert np.abs(y[0, :4]).max() < 1e-15
        assert np.isnan(y[0, 4:]).all()


@pytest.mark.parametrize(("format", "type"), [(F32, "float32"), (BF16, "bfloat16"), (I8, "float16")])
@pytest.mark.parametrize("y_type", ["float32", "bfloat16", "float16"])
def test_epilogue(device: Device, format: int, type: str, y_type: str) -> None:
    rng = np.random.default_rng(6)
    w = plain(format, 35, 100, rng, bias=True)
    x, residual = rng.standard_normal((9, 100)), rng.standard_normal((9, 35)).astype(np.float32)
    options = {"scale": 0.7, "softcap": 1.5}
    y = Run(device, w, type)(x, y_type=y_type, residual=residual, activation="silu", **options)
    want = reference.linear(rounded(x, type), w.weight, w.bias, act="silu", residual=residual, **options)
    rounding = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}[y_type]
    assert error(y, want) < bound(format, type) + rounding


@pytest.mark.parametrize(("format", "type", "m"), [(F32, "float32", 3), (BF16, "bfloat16", 40), (I8, "float16", 9)])
def test_adds_in_place(device: Device, format: int, type: str, m: int) -> None:
    rng = np.random.default_rng(13)
    w, x, residual = plain(format, 130, 40, rng), rng.standard_normal((m, 40)), rng.standard_normal((m, 130))
    run = Run(device, w, type)
    stream = run.rows(residual, "float32")
    array = run.keep[-1]
    device.module.linear(run.matrix, type, run.rows(x, type), m, stream, residual=stream)
    want = reference.linear(rounded(x, type), w.weight, residual=residual.astype(np.float32))
    assert error(device.to_host(array)[:, :130], want) < bound(format, type)


@pytest.mark.parametrize(("format", "type"), [(BF16, "bfloat16"), (I8, "float16"), (I4_G32, "bfloat16")])
@pytest.mark.parametrize("m", [2, 12])
def test_x_in_float32_is_rounded_on_the_way(device: Device, format: int, type: str, m: int) -> None:
    rng = np.random.default_rng(7)
    w, x = plain(format, 20, 75, rng), rng.standard_normal((m, 75))
    run = Run(device, w, type)
    np.testing.assert_array_equal(run(x, x_type="float32"), run(x))


@pytest.mark.parametrize(("format", "type"), CASES)
def test_a_row_has_the_same_bits_in_any_company(device: Device, format: int, type: str) -> None:
    rng = np.random.default_rng(8)
    w = plain(format, 130, 330, rng, bias=True)  # 9 tiles: more than one a block
    x = rng.standard_normal((64, 330))
    run = Run(device, w, type)
    together = run(x)
    for m in (3, 8, 17):
        np.testing.assert_array_equal(run(x[:m]), together[:m])
    np.testing.assert_array_equal(run(x[41:42])[0], together[41])


@pytest.mark.parametrize(
    ("format", "type"), [(F32, "float32"), (BF16, "bfloat16"), (I8, "float32"), (I4_G128, "float16")]
)
@pytest.mark.parametrize("kind", [RMS, LAYER])
@pytest.mark.parametrize("k", [70, 4100])
def test_norm_prologue(device: Device, format: int, type: str, kind: int, k: int) -> None:
    rng = np.random.default_rng(9)
    m, n = (4, 100) if k < 1000 else (1, 33)
    w, x = plain(format, n, k, rng), 2 + 3 * rng.standard_normal((m, k)).astype(np.float32)
    weight, shift = (rng.standard_normal(k).astype(np.float32) for _ in range(2))
    bias = shift if kind == LAYER else None
    normed = reference.rms_norm(x, weight, 1e-5) if kind == RMS else reference.layer_norm(x, weight, bias, 1e-5)
    run = Run(device, w, type)
    y = run(x, x_type="float32", norm=(kind, weight, bias, 1e-5))
    # A normed element that lies between two numbers of the type may be rounded to either.
    slack = {"float32": 0.0, "bfloat16": 2.0**-9, "float16": 2.0**-12}[type]
    assert error(y, reference.linear(rounded(normed, type), w.weight, w.bias)) < bound(format, type) + slack
    np.testing.assert_array_equal(y, run(stored_norm(run, x, kind, weight, bias)))


def stored_norm(run: Run, x: Any, kind: int, weight: Any, bias: Any) -> Any:
    """What the norm's own kernel stores: more rows take that way, and must get the same bits."""
    out = run.rows(np.zeros(x.shape), run.type)
    array = run.keep[-1]
    addresses = [0 if each is None else run.address(each) for each in (weight, bias)]
    run.device.module.norm(run.rows(x, "float32"), out, len(x), x.shape[1], kind == RMS, *addresses, 1e-5)
    return widen(run.device.to_host(array), run.type)[:, : x.shape[1]]


def test_takes_a_norm_of_few_rows(device: Device) -> None:
    rng = np.random.default_rng(10)
    w = plain(BF16, 8, 64, rng)
    ones = np.ones(64, np.float32)
    for m, x_type, taken in ((1, "float32", True), (4, "float32", True), (5, "float32", False), (1, "bfloat16", False)):
        run = Run(device, w, "bfloat16")
        run(np.ones((m, 64)), x_type=x_type, norm=(RMS, ones, None, 1e-5), launcher="takes_norm")
        assert run.result is taken


def test_more_rows_go_to_other_matmuls(device: Device) -> None:
    rng = np.random.default_rng(11)
    w, x = plain(BF16, 24, 40, rng, bias=True), rng.standard_normal((65, 40))
    run = Run(device, w, "bfloat16")
    want = reference.linear(rounded(x, "bfloat16"), w.weight, w.bias)
    assert error(run(x, launcher="linear"), want) < TOLERANCE["bfloat16"]
    assert error(run(x[:9], launcher="linear"), want[:9]) < TOLERANCE["bfloat16"]
    with pytest.raises(DeviceError, match="at most 64 rows"):
        run(x)


def test_mistakes_are_told(device: Device) -> None:
    w = plain(BF16, 8, 64, np.random.default_rng(12))
    with pytest.raises(DeviceError, match="bfloat16 weights in bfloat16"):
        Run(device, w, "float16")(np.ones((1, 64)))
    with pytest.raises(DeviceError, match="takes x in float32 or"):
        Run(device, w, "bfloat16")(np.ones((1, 64)), x_type="float16")
