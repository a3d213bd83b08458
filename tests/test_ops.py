"""Every operation of pyllm.ops, on every instruction set of this machine, against its float64 definition.

Tolerances are error bounds, not guesses: EPS is half a unit in the last place of float32, a sum of n products is off by
at most about n * EPS times the sum of their magnitudes, and what enters and leaves a function carries its own error on.
Rows may depend on their own data only, and bfloat16 results on no instruction set: both are compared bitwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import common_order_isas

from pyllm import _C, errors, ops
from pyllm.program import reference

pytestmark = pytest.mark.cpu_only("its kernels")

EPS = 2.0**-24
# The polynomials behind exp, erf and tanh, and what is done with their results: a few units in the last place.
FUNCTION = 12 * EPS
DTYPES = ("float32", "bfloat16")
ROWS = (*range(1, 13), 17, 33)
# (outputs, inputs): around the vector (8, 16), tile (32) and panel (64) sizes
SHAPES = ((1, 1), (15, 17), (16, 16), (31, 33), (64, 32), (65, 31), (100, 130), (130, 300))
WIDTHS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 259)
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh")


def draw(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: Any) -> None:
    """Reports the worst element: where it is, what it is, and how many times the tolerance it is off."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    excess = np.abs(found - expected) / np.broadcast_to(tolerance, expected.shape)
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    assert excess[worst] <= 1, (
        f"at {worst}: {found[worst]!r}, expected {expected[worst]!r}, {excess[worst]:.3g} times too far"
    )


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    different = a.view(np.uint32) != b.view(np.uint32)
    assert not different.any(), f"{different.sum()} of {a.size} differ, the first at {np.argwhere(different)[0]}"


def to_bf16(x: np.ndarray) -> np.ndarray:
    """bfloat16 bits of values that are bfloat16 already or get rounded."""
    return (reference.round_bf16(x).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def matmul_bound(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T * 1.01 + (0 if bias is None else np.abs(bias))
    return (x.shape[1] + 2) * EPS * size + 1e-37


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul(isa: str, dtype: str, shape: tuple[int, int]) -> None:
    n, k = shape
    w, bias = draw(1, n, k), draw(2, n)
    packed = ops.pack(w, bias, dtype=dtype, isa=isa)
    for m in ROWS:
        x = draw(m, m, k)
        expected = reference.linear(x, w, bias, bfloat16=dtype == "bfloat16")
        assert_close(ops.matmul(x, packed, isa=isa), expected, matmul_bound(x, w, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_matmul_epilogues(isa: str, dtype: str, activation: Any, gated: bool) -> None:
    m, n, k = 7, 2 * 23, 50
    x, w, bias, outputs = draw(1, m, k), draw(2, n, k, scale=0.3), draw(3, n), n // 2 if gated else n
    residual = draw(4, m, outputs)
    bf16 = dtype == "bfloat16"
    options: dict[str, Any] = {"activation": activation, "gated": gated, "dtype": dtype, "isa": isa}
    found = ops.matmul(x, w, bias, residual=residual, **options)
    expected = reference.linear(x, w, bias, act=activation, gated=gated, residual=residual, bfloat16=bf16)
    inner = reference.linear(x, w, bias, bfloat16=bf16)
    error = matmul_bound(x, w, bias)
    # No activation is steeper than 1.13.
    outer = 1.13 * error + FUNCTION * np.abs(inner)
    if gated:
        act, up = reference.activation(activation, inner[:, :outputs]), inner[:, outputs:]
        outer = outer[:, :outputs] * np.abs(up) + np.abs(act) * error[:, outputs:] + EPS * np.abs(act * up)
    assert_close(found, expected, outer + EPS * np.abs(expected) + EPS)
    without = ops.matmul(x, w, **options)
    assert_close(without, reference.linear(x, w, act=activation, gated=gated, bfloat16=bf16), 2 * outer + EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gated", "scale", "softcap"), [(False, 0.3, 2.0), (False, -2.0, 0.0), (True, 0.3, 0.0)])
def test_matmul_scale_and_softcap(isa: str, dtype: str, gated: bool, scale: float, softcap: float) -> None:
    """Cap and scale are on the way from the activation to the residual."""
    x, w, bias, residual = draw(1, 7, 50), draw(2, 46, 50, scale=0.3), draw(3, 46), draw(4, 7, 23 if gated else 46)
    packed = ops.pack(w, bias, gated=gated, dtype=dtype, isa=isa)
    plain = ops.matmul(x, packed, activation="gelu", isa=isa)
    capped = softcap * np.tanh(plain.astype(np.float64) / softcap) if softcap else plain.astype(np.float64)
    expected = residual + np.float64(np.float32(scale)) * capped
    found = ops.matmul(x, packed, activation="gelu", residual=residual, isa=isa, scale=scale, softcap=softcap)
    assert_close(found, expected, FUNCTION * np.abs(scale * capped) + 2 * EPS * np.abs(expected) + 1e-37)
    assert_same_bits(ops.matmul(x, packed, activation="gelu", isa=isa, scale=1.0, softcap=0.0), plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_takes_any_source(isa: str, dtype: str) -> None:
    """Types, strides and joined parts give what float32 gives whose values are the same."""
    exact = reference.round_bf16(draw(1, 70, 45)).astype(np.float32)  # bfloat16 values; in float16's range as well
    exact = exact.astype(np.float16).astype(np.float32)
    x = draw(2, 3, 45)
    expected = ops.matmul(x, exact, dtype=dtype, isa=isa)
    doubled = np.zeros((140, 90), np.float32)
    doubled[::2, ::2] = exact
    sources = {
        "float16": exact.astype(np.float16),
        "transposed": np.ascontiguousarray(exact.T).T,
        "transposed float16": np.ascontiguousarray(exact.T.astype(np.float16)).T,
        "strided": doubled[::2, ::2],
        "reversed": np.ascontiguousarray(exact[::-1])[::-1],
        "joined": [exact[:1], exact[1:33], exact[33:]],
    }
    for name, source in sources.items():
        assert np.array_equal(ops.matmul(x, ops.pack(source, dtype=dtype, isa=isa), isa=isa), expected), name
    rounded = reference.round_bf16(exact).astype(np.float32)
    assert_same_bits(
        ops.matmul(x, ops.pack(to_bf16(exact), dtype=dtype, isa=isa), isa=isa),
        ops.matmul(x, rounded, dtype=dtype, isa=isa),
    )


QUANTISED = ("int8", "int8-fast", "int4", "int4-g128")


def dequantised(w: np.ndarray, dtype: str) -> np.ndarray:
    """The weights that pack() keeps of w, in float64."""
    codes, scales = _C.quantize(w, dtype)
    if dtype.startswith("int8"):
        return codes * scales.astype(np.float64)
    spread = np.repeat(scales.astype(np.float64), 128 if dtype == "int4-g128" else 32, axis=1)[:, : w.shape[1]]
    return (codes.astype(np.float64) - 8) * spread


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul_with_integer_weights(isa: str, dtype: str, shape: tuple[int, int]) -> None:
    """Activations are integers of 16 bits (int8-fast: 8) of each row's largest magnitude, half a unit off at most."""
    n, k = shape
    w, bias = draw(1, n, k), draw(2, n)
    packed = ops.pack(w, bias, dtype=dtype, isa=isa)
    kept = dequantised(w, dtype)
    for m in ROWS:
        x = draw(m, m, k)
        step = np.abs(x).max(1, keepdims=True) / (127 if dtype == "int8-fast" else 32639)
        bound = matmul_bound(x, kept, bias) + 0.501 * step * np.abs(kept).sum(1)
        assert_close(ops.matmul(x, packed, isa=isa), x.astype(np.float64) @ kept.T + bias, bound)


@pytest.mark.parametrize("dtype", QUANTISED)
def test_codes_pack_to_what_they_came_from(isa: str, dtype: str) -> None:
    """quantize() gives what pack() chooses, on every instruction set; rows can be looked up in either."""
    w, x = draw(1, 70, 300), draw(2, 5, 300)
    w[3] = 0
    codes, scales = _C.quantize(w, dtype, isa)
    for found, here in zip((codes, scales), _C.quantize(np.asfortranarray(w), dtype), strict=True):
        assert np.array_equal(found, here)
    packed = ops.pack(w, dtype=dtype, isa=isa)
    group = {"int4": 32, "int4-g128": 128}.get(dtype, 0)
    again = _C.pack_codes([(codes, scales, None)], [], False, dtype, group, isa)
    if dtype in ("int4", "int4-g128"):  # 300 columns are no multiple of a group
        with pytest.raises(errors.ArrayError, match="groups"):
            _C.pack_codes([(codes, scales[:, :2].copy(), None)], [], False, dtype, 100, isa)
    assert_same_bits(ops.matmul(x, packed, isa=isa), ops.matmul(x, again, isa=isa))
    rows = ops.embedding(np.arange(70), packed)
    assert_same_bits(rows, dequantised(w, dtype).astype(np.float32))
    assert_same_bits(rows, ops.embedding(np.arange(70), again))


def test_zero_points_and_wide_groups(isa: str) -> None:
    """Codes as GPTQ and AWQ store them: groups of 64, zero points up to 16, gated."""
    random = np.random.RandomState(3)
    parts, kept = [], []
    for _ in range(2):
        codes = random.randint(0, 16, (37, 192)).astype(np.uint8)
        scales = random.randint(1, 900, (37, 3)).astype(np.float32) * np.float32(2.0**-14)
        zeros = random.randint(0, 17, (37, 3)).astype(np.uint8)
        parts.append((codes, scales, zeros))
        kept.append((codes - np.repeat(zeros.astype(np.float64), 64, 1)) * np.repeat(scales, 64, 1))
    packed = _C.pack_codes(parts, [], False, "int4z", 0, isa)
    x = draw(1, 6, 192)
    whole = np.concatenate(kept)
    step = np.abs(x).max(1, keepdims=True) / 32639
    bound = matmul_bound(x, whole, None) + 0.501 * step * np.abs(whole).sum(1)
    assert_close(ops.matmul(x, packed, isa=isa), x.astype(np.float64) @ whole.T, bound)
    gated = ops.matmul(x, _C.pack_codes(parts, [], True, "int4z", 0, isa), isa=isa)
    assert_same_bits(gated, ops.matmul(x, packed, isa=isa)[:, :37] * ops.matmul(x, packed, isa=isa)[:, 37:])


@pytest.mark.parametrize("dtype", ["float16", *QUANTISED])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_weights_that_a_format_cannot_hold(dtype: str, bad: float) -> None:
    w = draw(1, 70, 40)
    w[66, 3] = bad
    if bad == 1e30 and dtype.startswith("int8"):
        assert ops.pack(w, dtype=dtype).dtype == dtype
        return
    with pytest.raises(errors.ArrayError, match="row 66 of part 0"):
        ops.pack(w, dtype=dtype)


ATTENTION_CASES: tuple[dict[str, Any], ...] = (
    {"heads": (1, 1), "head_dim": 1},
    {"heads": (2, 2), "head_dim": 12},
    {"heads": (4, 1), "head_dim": 64},
    {"heads": (14, 2), "head_dim": 33, "window": 9},
    {"heads": (3, 3), "head_dim": 80, "softcap": 2.0},
    {"heads": (6, 2), "head_dim": 16, "causal": False},
    {"heads": (4, 2), "head_dim": 12, "biased": True},
    {"heads": (2, 2), "head_dim": 20, "biased": True, "causal": False},
    {"heads": (3, 1), "head_dim": 64, "biased": True, "softcap": 3.0, "window": 20},
    {"heads": (2, 1), "head_dim": 128, "biased": True, "causal": False, "window": 7},
    {"heads": (2, 1), "head_dim": 20, "causal": False, "window": 1},
    {"heads": (2, 1), "head_dim": 64, "causal": False, "window": 40},
)
SPANS = (
    (1, 1),
    (1, 32),
    (2, 33),
    (5, 5),
    (12, 70),
    (40, 40),
    (1, 201),
    (31, 31),
    (32, 32),
    (33, 100),
)  # (queries, keys)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_attention(isa: str, dtype: str, case: dict[str, Any]) -> None:
    (heads, kv_heads), e = case["heads"], case["head_dim"]
    options = {name: value for name, value in case.items() if name not in ("heads", "head_dim", "biased")}
    scale, bf16 = e**-0.5, dtype == "bfloat16"
    for queries, keys in SPANS:
        q, k, v = draw(1, queries, heads, e), draw(2, keys, kv_heads, e), draw(3, keys, kv_heads, e)
        if case.get("biased"):
            options["bias"] = draw(4, heads, queries, keys, scale=2.0)
        expected = reference.attention(q, k, v, scale=scale, bfloat16=bf16, **options)
        # A score's error moves p by as much, relatively; p is rounded once more in bfloat16; then a sum over the keys.
        score = scale * (e + 2) * EPS * np.sqrt((q**2).sum(-1).max() * (k**2).sum(-1).max())
        score += 16 * EPS if "bias" in options else 0  # no bias is larger than 8: half a unit in the last place
        relative = 2 * score + FUNCTION + (keys + 4) * EPS + (2.0**-8 if bf16 else 0)
        size = reference.attention(q, k, np.abs(v), scale=scale, **options)
        assert_close(ops.attention(q, k, v, dtype=dtype, isa=isa, **options), expected, relative * size * 1.01 + 1e-37)


def quantised(x: np.ndarray, top: int) -> np.ndarray:
    """Rows of x over the last axis as integers up to `top` with one scale each, times the scale."""
    most = np.abs(x).max(-1, keepdims=True)
    return np.asarray(np.rint(x * (np.float32(top) / most)).astype(np.float64) * (most / np.float32(top)))


@pytest.mark.parametrize("head_dim", [1, 20, 64, 96])
def test_attention_over_rounded_keys(isa: str, head_dim: int) -> None:
    """float16 is float32 over rounded keys and values; int8 besides rounds queries, and weights to 16 bits a block."""
    for queries, keys in SPANS:
        q, k, v = draw(1, queries, 6, head_dim), draw(2, keys, 2, head_dim), draw(3, keys, 2, head_dim)
        halves = [x.astype(np.float16).astype(np.float32) for x in (k, v)]
        found = ops.attention(q, k, v, dtype="float16", isa=isa)
        assert_same_bits(found, ops.attention(q, *halves, isa=isa))
        exact = [quantised(q, 32639), quantised(k, 127), quantised(v, 127)]
        expected = reference.attention(*exact, scale=head_dim**-0.5)
        # Half a step of 32 weights times a code each, in every block: its steps are the largest weight / 32639.
        steps = 0.51 / 32639 * 32 * np.abs(v).max()
        assert_close(ops.attention(q, k, v, dtype="int8", isa=isa), expected, 1e-5 * np.abs(v).max() + steps)


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(isa: str, width: int) -> None:
    x, weight, bias = draw(1, 5, width) + 3, draw(2, width), draw(3, width)
    for b in (None, bias):
        expected = reference.layer_norm(x, weight, b, 1e-5)
        # The mean is off by (n / 16 + 5) EPS of the mean magnitude, which one division by the deviation enlarges.
        deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        mean = (width / 16 + 6) * EPS * np.abs(x).mean(-1, keepdims=True)
        relative = mean / deviation + (width / 16 + 8) * EPS
        bound = relative * (np.abs(weight) * (1 + np.abs(expected if b is None else expected - b) / np.abs(weight)))
        assert_close(
            ops.layer_norm(x, weight, b, 1e-5, isa=isa), expected, bound + 2 * EPS * np.abs(expected) + 4 * EPS
        )
    expected = reference.rms_norm(x, weight, 1e-6)
    assert_close(ops.rms_norm(x, weight, 1e-6, isa=isa), expected, (width / 16 + 8) * EPS * np.abs(expected) + 1e-37)


@pytest.mark.parametrize("width", WIDTHS)
def test_softmax(isa: str, width: int) -> None:
    for scale in (1.0, 30.0):
        x = draw(1, 4, width, scale=scale)
        expected = reference.softmax(x)
        # x - max is rounded, which the exponential turns into a relative error.
        spread = EPS * np.abs(x - x.max(-1, keepdims=True))
        assert_close(ops.softmax(x, isa=isa), expected, (2 * spread + FUNCTION + width / 16 * EPS) * expected + 1e-37)
    hidden = np.where(np.arange(width) < width // 2, -np.inf, x).astype(np.float32)
    assert_close(ops.softmax(hidden, isa=isa), reference.softmax(hidden), 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa: str, activation: Any) -> None:
    x = np.concatenate(
        [draw(1, 1000, scale=3), np.linspace(-12, 12, 999), [0, -0.0, 1e-30, -1e-30, 88, -88, 1e4, -1e4]]
    )
    x = x.astype(np.float32)
    expected = reference.activation(activation, x)
    assert_close(ops.activate(x, activation, isa=isa), expected, FUNCTION * np.maximum(np.abs(x), 1e-6))
    for width in WIDTHS:
        assert_same_bits(ops.activate(x[:width], activation, isa=isa), ops.activate(x, activation, isa=isa)[:width])
    g, u = draw(2, 3, 33), draw(3, 3, 33)
    bound = (FUNCTION * np.abs(g) + EPS) * np.abs(u) + 1e-37
    assert_close(ops.gate(g, u, activation, isa=isa), reference.activation(activation, g) * u, bound)


def test_named_activations(isa: str) -> None:
    x, up = draw(1, 2, 3, 19), draw(2, 2, 3, 19)
    for name in ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu"):
        assert_same_bits(getattr(ops, name)(x, isa=isa), ops.activate(x, name, isa=isa))
    assert_same_bits(ops.silu_gate(x, up, isa=isa), ops.gate(x, up, "silu", isa=isa))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(2, 2), (12, 12), (33, 30), (64, 64), (80, 34), (128, 128)])
def test_rope(isa: str, interleaved: bool, head_dim: int, rotary_dim: int) -> None:
    x, positions = draw(1, 5, 3, head_dim), np.array([0, 1, 77, 4095, 100000])
    inv_freq = (10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    found = ops.rope(x, positions, inv_freq, interleaved=interleaved, isa=isa)
    expected = reference.rope(x, reference.rotary(positions, inv_freq), interleaved=interleaved)
    assert_close(found, expected, 4 * EPS * np.abs(x).max())
    assert_same_bits(found[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (70, 45), (131, 64)])
def test_embedding(isa: str, dtype: str, rows: int, width: int) -> None:
    """Looked up in plain rows and in the packed form (a tied head), the same bits."""
    table, ids = draw(1, rows, width), np.arange(rows)[::-1]
    expected = reference.embed(ids, table, scale=2.5, bfloat16=dtype == "bfloat16")
    plain = ops.embedding(ids, table, 2.5, dtype=dtype)
    assert_close(plain, expected, 2 * EPS * np.abs(expected) + 1e-37)
    assert_same_bits(ops.embedding(ids, ops.pack(table, dtype=dtype, isa=isa), 2.5), plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_result_is_its_own(isa: str, dtype: str) -> None:
    """Neither the other rows nor the threads change a bit."""
    x, w, bias = draw(1, 40, 100), draw(2, 2 * 68, 100), draw(3, 2 * 68)
    packed = ops.pack(w, bias, gated=True, dtype=dtype, isa=isa)
    whole = ops.matmul(x, packed, activation="silu", isa=isa, num_threads=1)
    for threads in (1, 2, 3):
        for begin, end in ((0, 1), (3, 5), (7, 12), (0, 17), (8, 40)):
            part = ops.matmul(x[begin:end], packed, activation="silu", isa=isa, num_threads=threads)
            assert_same_bits(part, whole[begin:end])
    q, k, v = draw(4, 40, 6, 20), draw(5, 40, 2, 20), draw(6, 40, 2, 20)
    attended = ops.attention(q, k, v, dtype=dtype, isa=isa, num_threads=1)
    for threads in (1, 2, 3):
        for begin, end in ((0, 1), (3, 5), (7, 12), (0, 17), (39, 40)):
            part = ops.attention(q[begin:end], k[:end], v[:end], dtype=dtype, isa=isa, num_threads=threads)
            assert_same_bits(part, attended[begin:end])


def test_bfloat16_is_the_same_on_every_isa() -> None:
    """A product of two bfloat16 is exact, so multiplying and adding, as the scalar table does, is a fused multiply-add;
    not so in exponentials, and where the product is a denormal."""
    x, w, residual = draw(1, 21, 130), draw(2, 100, 130), draw(3, 21, 100)
    q, k, v = draw(4, 21, 6, 36), draw(5, 90, 2, 36), draw(6, 90, 2, 36)
    results: list[list[np.ndarray]] = []
    for isa in common_order_isas():
        options: dict[str, Any] = {"dtype": "bfloat16", "isa": isa}
        found = [ops.matmul(x, w, residual=residual, **options), ops.matmul(x[:1], w, **options)]
        if isa != "scalar":
            found += [ops.attention(q, k, v, **options), ops.attention(q[:1], k, v, **options)]
            bias = draw(7, 6, 21, 90)
            found += [ops.attention(q, k, v, causal=False, window=30, bias=bias, softcap=4.0, **options)]
            found += [ops.matmul(x, w, activation="tanh", scale=0.3, softcap=2.0, **options)]
            found += [ops.matmul(x * np.float32(2.0**-120), w * np.float32(2.0**-10), **options)]
        results.append(found)
    for found in results[:-1]:
        for one, other in zip(found, results[-1], strict=False):
            assert_same_bits(one, other)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 5)), errors.ArrayError, r"\[x\] .* got float32 \[2, 3\]"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 3), draw(1, 5)), errors.ArrayError, r"\[bias\]"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 3), residual=draw(1, 2, 5)), errors.ArrayError, r"\[residual\]"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 5, 3), gated=True), errors.ArrayError, "even number"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4)), errors.ArrayError, r"\[weight\]"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 3), dtype="int7"), errors.InvalidOptionError, "int4z-g128"),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 3), activation="sinh"), errors.InvalidOptionError, "sinh"),  # type: ignore[arg-type]
        (lambda: ops.softmax(draw(1, 2, 3), isa="sse9"), errors.DeviceError, "sse9"),
        (lambda: ops.softmax(draw(1, 2, 3), num_threads=0), errors.InvalidOptionError, "num_threads"),
        (lambda: ops.softmax(draw(1, 2, 0)), errors.ArrayError, "must have elements"),
        (lambda: ops.layer_norm(draw(1, 2, 3), draw(1, 4)), errors.ArrayError, r"\[weight\]"),
        (lambda: ops.embedding([0, 3], draw(1, 3, 2)), errors.ArrayError, r"\[0, 3\), got 3"),
        (lambda: ops.embedding([0.5], draw(1, 3, 2)), errors.ArrayError, "integers"),
        (lambda: ops.attention(draw(1, 2, 3, 4), draw(1, 2, 2, 4), draw(1, 2, 2, 4)), errors.ArrayError, "multiple"),
        (lambda: ops.attention(draw(1, 3, 2, 4), draw(1, 2, 2, 4), draw(1, 2, 2, 4)), errors.ArrayError, "at most"),
        (
            lambda: ops.attention(draw(1, 2, 2, 4), draw(1, 3, 2, 4), draw(1, 3, 2, 4), bias=draw(1, 2, 3, 2)),
            errors.ArrayError,
            r"\[bias\] must be float32 \[2, 2, 3\]",
        ),
        (lambda: ops.matmul(draw(1, 2, 3), draw(1, 4, 3), gated=True, softcap=2), errors.InvalidOptionError, "softcap"),
        (lambda: ops.rope(draw(1, 2, 1, 4), [0, 1], [1.0, 0.5, 0.1]), errors.ArrayError, "at most head_dim"),
        (lambda: ops.rope(draw(1, 2, 1, 4), [[0, 1]], [1.0]), errors.ArrayError, r"\[1, 2\] and \[1\]"),
        (lambda: ops.relu(draw(1, 2), num_threads=10**30), errors.InvalidOptionError, "num_threads"),
        (lambda: ops.gate(draw(1, 2, 3), draw(1, 2, 4), "silu"), errors.ArrayError, r"\[up\]"),
    ],
)  # fmt: skip
def test_wrong_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_no_rows() -> None:
    assert ops.matmul(draw(1, 0, 3), draw(1, 4, 3)).shape == (0, 4)
    assert ops.layer_norm(draw(1, 0, 3), draw(1, 3)).shape == (0, 3)
    assert ops.attention(draw(1, 0, 2, 4), draw(1, 5, 2, 4), draw(1, 5, 2, 4)).shape == (0, 2, 4)
