"""The CUDA matmul for many rows against the float64 reference: every format and type, sizes that divide nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device, narrow, widen
from cuda_matrices import (
    ACTIVATIONS,
    BF16,
    CASES,
    F16,
    F32,
    I4_G32,
    I4_G128,
    I4Z_G32,
    I4Z_G128,
    I8,
    Plain,
    plain,
    rounded,
    rows_of,
)

from pyllm.devices import cuda_driver
from pyllm.program import reference

# Of a result's size: rounding of x to the type, sums of a few hundred products in float32, a narrow result.
TOLERANCE = {"float32": 1e-6, "split": 1e-5, "bfloat16": 2e-6, "float16": 2e-6}


def run(
    device: Device,
    w: Plain,
    x: Any,
    type: str,
    *,
    x_type: str = "",
    y_type: str = "float32",
    activation: str = "none",
    scale: float = 1.0,
    softcap: float = 0.0,
    residual: Any = None,
    launcher: str = "linear_tiles",
) -> Any:
    keep: list[Any] = []
    m, outputs = len(x), w.weight.shape[0] // (2 if w.gated else 1)
    x_array, x_rows = rows_of(device, x, x_type or type)
    y_array, y_rows = rows_of(device, np.zeros((m, outputs)), y_type)
    none = (0, 0, "float32")
    residual_array, residual_rows = (None, none) if residual is None else rows_of(device, residual, "float32")
    arguments = (
        w.on(device, keep),
        type,
        x_rows,
        m,
        ACTIVATIONS.index(activation),
        scale,
        softcap,
        residual_rows,
        y_rows,
    )
    if launcher == "linear_lt":
        keep.append(device.to_device(np.zeros(device.module.linear_lt(*arguments), np.uint8)))
        arguments = (*arguments, device.pointer(keep[-1]))
    getattr(device.module, launcher)(*arguments)
    keep += [x_array, residual_array]
    y = widen(device.to_host(y_array), y_type)
    assert np.isnan(y[:, outputs:]).all()  # nothing is written beyond the outputs
    return y[:, :outputs]


def wanted(w: Plain, x: Any, type: str, **options: Any) -> Any:
    """x as the products take it: rounded to the type, but float32 over integers keeps 16 bits."""
    exact = rounded(x, type)
    return reference.linear(exact, w.weight, w.bias, gated=w.gated, **options)


def error(y: Any, want: Any) -> float:
    return float(np.abs(y - want).max() / max(np.abs(want).max(), 1e-30))


def bound(format: int, type: str) -> float:
    return TOLERANCE["split" if type == "float32" and format != F32 else type]


@pytest.mark.parametrize(("format", "type"), CASES)
@pytest.mark.parametrize(("m", "k", "n"), [(65, 33, 130), (100, 100, 5), (3, 200, 70)])
def test_plain_products(device: Device, format: int, type: str, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m + k)
    w, x = plain(format, n, k, rng, bias=True), rng.standard_normal((m, k))
    y = run(device, w, x, type)
    assert error(y, wanted(w, x, type)) < bound(format, type)


@pytest.mark.parametrize(("format", "type"), [CASES[0], CASES[1], (I8, "float16"), (I4Z_G32, "bfloat16")])
def test_gated_with_residual_and_narrow_result(device: Device, format: int, type: str) -> None:
    rng = np.random.default_rng(5)
    w, x = plain(format, 80, 96, rng, gated=True, bias=True), rng.standard_normal((70, 96))
    residual = rng.standard_normal((70, 40))
    options = {"residual": residual, "scale": 0.5, "softcap": 3.0}
    y_type = "float16" if type == "float16" else "bfloat16"
    y = run(device, w, x, type, activation="silu", y_type=y_type, **options)
    want = wanted(w, x, type, act="silu", **options)
    assert error(y, want) < 2.0**-8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(device: Device, activation: str) -> None:
    rng = np.random.default_rng(6)
    w, x = plain(F32, 48, 16, rng), 4 * rng.standard_normal((4, 16))
    y = run(device, w, x, "float32", activation=activation)
    assert error(y, wanted(w, x, "float32", act=activation)) < 1e-6


@pytest.mark.parametrize(("format", "type"), [CASES[1], CASES[2], (I8, "bfloat16"), (I4_G32, "float16")])
def test_float_rows_are_rounded_on_the_way(device: Device, format: int, type: str) -> None:
    rng = np.random.default_rng(7)
    w = plain(format, 96, 100, rng)
    for m in (2, 66):
        x = rng.standard_normal((m, 100))
        narrow = run(device, w, x, type)
        np.testing.assert_array_equal(run(device, w, x, type, x_type="float32"), narrow)


@pytest.mark.parametrize(("format", "type"), CASES)
def test_rows_keep_their_bits(device: Device, format: int, type: str) -> None:
    """Whatever the rows beside them, the tile that the number of rows chooses, and the order of threads."""
    rng = np.random.default_rng(8)
    w, x = plain(format, 40, 130, rng, bias=True), rng.standard_normal((130, 130))
    whole = run(device, w, x, type)
    if hasattr(device.module, "set_seed"):
        device.module.set_seed(3)
    try:
        for first, last in ((0, 1), (5, 21), (64, 130)):
            np.testing.assert_array_equal(run(device, w, x[first:last], type), whole[first:last])
    finally:
        if hasattr(device.module, "set_seed"):
            device.module.set_seed(0)
    broken = x.copy()
    broken[1] = np.nan
    y = run(device, w, broken, type)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(np.delete(y, 1, 0), np.delete(whole, 1, 0))


@pytest.mark.parametrize(("format", "type"), [(BF16, "bfloat16"), (I8, "float16")])
def test_big_tile(device: Device, format: int, type: str) -> None:
    """Enough rows and outputs for the tile of 128 x 128: the same bits as the small one gives."""
    rng = np.random.default_rng(9)
    w, x = plain(format, 1024, 16, rng), rng.standard_normal((1930, 16))
    y = run(device, w, x, type)
    assert error(y, wanted(w, x, type)) < bound(format, type)
    np.testing.assert_array_equal(run(device, w, x[100:200], type), y[100:200])


@pytest.mark.parametrize("type", ["bfloat16", "float16"])
@pytest.mark.parametrize("format", [I8, I4_G32, I4_G128, I4Z_G32, I4Z_G128])
def test_weights_made_wide(device: Device, format: int, type: str) -> None:
    """What cuBLASLt gets for integer weights: int8 codes exactly, int4 rounded once."""
    rng = np.random.default_rng(10)
    w, keep = plain(format, 24, 200, rng), []
    out = device.to_device(narrow(np.full((24, w.ld), np.nan), type))
    device.module.widen_weights(w.on(device, keep), type, device.pointer(out))
    wide = widen(device.to_host(out), type)
    want = w.codes[:24, :200] if format == I8 else rounded(w.weight, type)
    np.testing.assert_array_equal(wide[:, :200], want)
    np.testing.assert_array_equal(wide[:, 200:], 0)


def test_epilogue_of_sums(device: Device) -> None:
    """What follows a product by cuBLASLt, over part of the rows."""
    rng = np.random.default_rng(11)
    for format, gated, y_type in ((I8, True, "bfloat16"), (F16, False, "float32")):
        w, keep = plain(format, 80, 64, rng, gated=gated, bias=True), []
        outputs = 40 if gated else 80
        residual, x = rng.standard_normal((9, outputs)), rng.standard_normal((9, 64))
        sums = device.to_device(np.float32(x @ w.packed_values().T))
        residual_array, residual_rows = rows_of(device, residual, "float32")
        y_array, y_rows = rows_of(device, np.full((9, outputs), np.nan), y_type)
        device.module.finish_rows(
            w.on(device, keep), ACTIVATIONS.index("gelu"), 0.5, 2.0, residual_rows, y_rows,
            device.pointer(sums) + 4 * 3 * 128, 128, 3, 5,
        )  # fmt: skip
        keep += [residual_array]
        want = reference.linear(x, w.weight, w.bias, act="gelu", gated=gated, residual=residual, scale=0.5, softcap=2.0)
        y = widen(device.to_host(y_array), y_type)[:, :outputs]
        assert error(y[3:8], want[3:8]) < (2.0**-8 if y_type == "bfloat16" else 1e-6)
        assert np.isnan(y[[0, 1, 2, 8]]).all()


@pytest.mark.parametrize("type", ["bfloat16", "float16"])
def test_rows_made_narrow(device: Device, type: str) -> None:
    x = np.random.default_rng(12).standard_normal((3, 71))
    x_array, x_rows = rows_of(device, x, "float32")
    y_array, y_rows = rows_of(device, np.full((3, 71), np.nan), type)
    device.module.narrow_rows(x_rows, 3, 71, y_rows)
    del x_array
    y = device.to_host(y_array)
    np.testing.assert_array_equal(widen(y, type)[:, :71], rounded(x, type))


@pytest.mark.parametrize(("format", "type"), [CASES[0], CASES[1], CASES[2], (I8, "bfloat16"), (I4_G32, "float16")])
def test_cublaslt(device: Device, format: int, type: str) -> None:
    """On a GPU with cuBLASLt: the tiles' results up to rounding, and rows that keep their bits."""
    path = None if device.emulated else cuda_driver.cublaslt_path()
    if path is None or not device.module.load_cublaslt(path):
        pytest.skip("no cuBLASLt")
    rng = np.random.default_rng(13)
    w, x = plain(format, 512, 256, rng, gated=True, bias=True), rng.standard_normal((1500, 256))
    options: dict[str, Any] = {"activation": "silu", "launcher": "linear_lt"}
    y = run(device, w, x, type, **options)
    assert error(y, wanted(w, x, type, act="silu")) < (2.0**-8 if format == I4_G32 else 1e-5)
    np.testing.assert_array_equal(run(device, w, x[700:1100], type, **options), y[700:1100])


@pytest.mark.parametrize(("format", "type"), CASES[1:3])
def test_hopper(device: Device, format: int, type: str) -> None:
    """The tiles by wgmma, where a GPU has it: sizes that divide nothing, and rows that keep their bits."""
    if not hasattr(device.module, "linear_hopper") or device.module.device_info()["compute_capability"] != (9, 0):
        pytest.skip("no sm_90a")
    rng = np.random.default_rng(14)
    for m, k, n, gated in ((300, 1000, 208, True), (65, 33, 130, False)):
        w, x = plain(format, n, k, rng, gated=gated, bias=True), rng.standard_normal((m, k))
        options: dict[str, Any] = {"activation": "silu", "launcher": "linear_hopper"}
        y = run(device, w, x, type, **options)
        assert error(y, wanted(w, x, type, act="silu")) < 1e-5
        np.testing.assert_array_equal(run(device, w, x[20:60], type, **options), y[20:60])
