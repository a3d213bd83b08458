"""Mixtures of experts on the CUDA kernels, and the matmul of several matrices, against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device, widen
from cuda_matrices import BF16, F16, F32, I4Z_G32, I8, Plain, plain, rounded, rows_of

from pyllm.program import reference

Array = Any
NONE = (0, 0, "float32")
TYPES = [(F32, "float32"), (BF16, "bfloat16")]


@dataclass
class Routing:
    """What route() wrote, on the host, and the device arrays behind it."""

    list: Array
    counts: Array
    offsets: Array
    place: Array
    weights: Array
    arrays: dict[str, Array]

    def pointers(self, device: Device, *names: str) -> dict[str, int]:
        return {name: device.pointer(self.arrays[name]) for name in names}


def route(device: Device, logits: Array, experts: int, top_k: int, *, normalize: bool, shared: bool = False) -> Routing:
    rows, all_experts, each = len(logits), experts + shared, top_k + shared
    shapes = {"list": (all_experts, rows), "counts": all_experts, "offsets": all_experts, "place": (rows, each)}
    arrays = {name: device.to_device(np.full(shape, -7, np.int32)) for name, shape in shapes.items()}
    arrays["weights"] = device.to_device(np.full((rows, each), np.nan, np.float32))
    keep, router = rows_of(device, logits, "float32")
    addresses = {name: device.pointer(array) for name, array in arrays.items()}
    device.module.route(
        router=router, rows=rows, num_experts=experts, top_k=top_k, normalize=normalize, shared=shared, **addresses
    )
    del keep
    return Routing(**{name: device.to_host(array) for name, array in arrays.items()}, arrays=arrays)


@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 4, 2), (5, 70, 8), (64, 8, 8), (65, 33, 1), (300, 5, 2)])
@pytest.mark.parametrize("normalize", [False, True])
def test_route(device: Device, rows: int, experts: int, top_k: int, normalize: bool) -> None:
    rng = np.random.default_rng(rows)
    shared = rows % 2 == 1
    logits = np.float32(rng.integers(-3, 4, (rows, experts + shared)))  # many equals
    got = route(device, logits, experts, top_k, normalize=normalize, shared=shared)
    want = reference.route(logits[:, :experts], top_k, normalize=normalize)
    chosen = [np.flatnonzero(row) for row in want]
    np.testing.assert_array_equal(got.counts[:experts], [sum(e in c for c in chosen) for e in range(experts)])
    np.testing.assert_array_equal(got.offsets[:experts], np.cumsum(got.counts[:experts]) - got.counts[:experts])
    for row, of_row in enumerate(chosen):
        np.testing.assert_allclose(got.weights[row, :top_k], want[row, of_row], rtol=1e-6)
        for place, expert in zip(got.place[row], of_row, strict=False):
            assert got.list[expert, place - got.offsets[expert]] == row
    for expert, count in enumerate(got.counts[:experts]):
        assert (np.diff(got.list[expert, :count]) > 0).all()
    if shared:
        assert got.counts[experts] == rows
        assert got.offsets[experts] == rows * top_k
        np.testing.assert_array_equal(got.list[experts], np.arange(rows))
        np.testing.assert_array_equal(got.place[:, top_k], rows * top_k + np.arange(rows))
        np.testing.assert_allclose(got.weights[:, top_k], 1 / (1 + np.exp(-logits[:, experts])), rtol=1e-6)


def test_rows_without_numbers_spoil_themselves_only(device: Device) -> None:
    logits = np.random.default_rng(0).standard_normal((66, 40)).astype(np.float32)
    broken = logits.copy()
    broken[3] = np.nan
    broken[7, 5] = np.inf
    whole = route(device, logits, 40, 4, normalize=True).weights
    got = route(device, broken, 40, 4, normalize=True)
    assert np.isnan(got.weights[[3, 7]]).all()
    assert got.counts.sum() == 66 * 4
    np.testing.assert_array_equal(np.sort(got.place, axis=None), np.arange(66 * 4))
    others = np.delete(np.arange(66), [3, 7])
    np.testing.assert_array_equal(got.weights[others], whole[others])


def matrices_on(device: Device, matrices: list[Plain], keep: list[Any]) -> tuple[int, dict[str, Any]]:
    """The address of the array of matrices, and the dict of one."""
    each = [w.on(device, keep) for w in matrices]
    held = b"".join(device.module.matrix_bytes(w) for w in each)
    keep.append(device.to_device(np.frombuffer(held, np.uint8)))
    return device.pointer(keep[-1]), each[0]


@pytest.mark.parametrize(("format", "type"), [*TYPES, (F16, "float16"), (I8, "float32")])
@pytest.mark.parametrize(("rows", "width", "begin"), [(3, 40, 0), (18, 13, 5)])
def test_heads(device: Device, format: int, type: str, rows: int, width: int, begin: int) -> None:
    """Number z reads columns begin + z * K and writes columns z * N, whatever they are multiples of."""
    rng = np.random.default_rng(rows)
    matrices = [plain(format, 7, width, rng, bias=True) for _ in range(3)]
    x = rng.standard_normal((rows, begin + 3 * width + 4))
    keep: list[Any] = []
    w, shape = matrices_on(device, matrices, keep)
    x_array, x_rows = rows_of(device, x, type)
    y_array, y_rows = rows_of(device, np.zeros((rows, 21)), "float32")
    device.module.linear_batch(w, shape, 3, type, x_rows, y_rows, rows, x_begin=begin, x_step=width, y_step=7)
    del x_array
    exact = rounded(x, type)[:, begin : begin + 3 * width].reshape(rows, 3, width)
    want = [reference.linear(exact[:, z], m.weight, m.bias) for z, m in enumerate(matrices)]
    y = device.to_host(y_array)
    np.testing.assert_allclose(y[:, :21], np.concatenate(want, 1), rtol=0, atol=1e-5 * np.abs(want).max())
    assert np.isnan(y[:, 21:]).all()


def mixture(device: Device, format: int, type: str, x: Array, logits: Array, seed: int) -> tuple[Array, Array]:
    """out [T, D] of a mixture of 5 experts, 2 a row, and what the reference says."""
    rng = np.random.default_rng(seed)
    rows, width, hidden = len(x), x.shape[1], 24
    gate_up = [plain(format, 2 * hidden, width, rng, gated=True) for _ in range(5)]
    down = [plain(format, width, hidden, rng, bias=True) for _ in range(5)]
    routing = route(device, logits, 5, 2, normalize=True)
    keep: list[Any] = []
    x_array, x_rows = rows_of(device, x, type)
    h_array, h_rows = rows_of(device, np.zeros((2 * rows, hidden)), type)
    y_array, y_rows = rows_of(device, np.zeros((2 * rows, width)), "float32")
    out_array, out_rows = rows_of(device, np.zeros((rows, width)), "float32")
    residual, residual_rows = rows_of(device, x, "float32")
    lists = routing.pointers(device, "list", "counts", "offsets") | {"list_stride": rows}
    w, shape = matrices_on(device, gate_up, keep)
    device.module.linear_batch(
        w, shape, 5, type, x_rows, h_rows, rows, activation=5, compact_y=True, **lists
    )  # 5: silu
    w, shape = matrices_on(device, down, keep)
    device.module.linear_batch(w, shape, 5, type, h_rows, y_rows, rows, compact_x=True, compact_y=True, **lists)
    device.module.combine(
        rows, 2, False, y=y_rows, residual=residual_rows, out=out_rows, cols=width,
        **routing.pointers(device, "place", "weights"),
    )  # fmt: skip
    keep += [x_array, h_array, y_array, residual]
    weights = reference.route(logits, 2, normalize=True)
    want = np.float64(x)
    for e in range(5):
        h = reference.linear(rounded(x, type), gate_up[e].weight, act="silu", gated=True)
        want = want + weights[:, e, None] * reference.linear(rounded(h, type), down[e].weight, down[e].bias)
    return device.to_host(out_array)[:, :width], want


@pytest.mark.parametrize(
    ("format", "type"), [(F32, "float32"), (BF16, "bfloat16"), (I8, "float16"), (I4Z_G32, "float32")]
)
@pytest.mark.parametrize("rows", [3, 67])
def test_mixture(device: Device, format: int, type: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, logits = np.float32(rng.standard_normal((rows, 36))), np.float32(rng.standard_normal((rows, 5)))
    got, want = mixture(device, format, type, x, logits, 4)
    # float32 x over integers is held to 16 bits; h may round to the other side in narrow types
    tolerance = {"float32": 3e-5, "bfloat16": 4e-3, "float16": 5e-4}[type]
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()
    alone, _ = mixture(device, format, type, x[1:2], logits[1:2], 4)
    np.testing.assert_array_equal(alone[0], got[1])


def test_combine_narrow(device: Device) -> None:
    """The experts' rows and the result in narrow types, without a residual; the shared expert's rows come last."""
    rng = np.random.default_rng(3)
    place = np.int32([[4, 0, 6], [1, 5, 7], [2, 3, 8]])
    weights = np.float32(rng.random((3, 3)))
    y = rng.standard_normal((9, 37))
    for type in ("bfloat16", "float16"):
        y_array, y_rows = rows_of(device, y, type)
        out_array, out_rows = rows_of(device, np.zeros((3, 37)), type)
        place_array, weights_array = device.to_device(place), device.to_device(weights)
        device.module.combine(
            3,
            2,
            True,
            device.pointer(place_array),
            device.pointer(weights_array),
            y_rows,
            (0, 0, "float32"),
            out_rows,
            37,
        )
        want = np.einsum("te,tec->tc", np.float64(weights), rounded(y, type)[place])
        got = widen(device.to_host(out_array), type)[:, :37]
        assert np.abs(got - want).max() < 2.0**-8 * np.abs(want).max()
        del y_array
