"""Packing for the CUDA kernels: what is packed, read back by the layout's description, is what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import toy_folder

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.cuda_packing import FORMATS, DeviceWeights, Packed, pack_codes, pack_floats
from pyllm.devices.formats import GROUPS
from pyllm.devices.lowering import Lowering
from pyllm.devices.packing import load_weights
from pyllm.errors import ArrayError
from pyllm.models import bind, network_of
from pyllm.program.reference import round_bf16

_C = pytest.importorskip("pyllm._C")


def bf16(values: Any) -> Any:
    return (round_bf16(values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def nibbles(packed: Packed[Any]) -> Any:
    """int4 codes [rows, ld], one by one as cuda/launch.h says."""
    words = packed.codes.view(np.uint32)  # [rows, ld / 8]
    out = np.zeros((len(words), packed.ld), np.uint8)
    for k in range(packed.ld):
        chunk, j, t, pair, half = k // 128, k % 128 // 32, k % 32 // 8, k % 8 // 2, k % 2
        out[:, k] = words[:, 16 * chunk + 4 * t + j] >> np.uint32(4 * (pair + 4 * half)) & 15
    return out


def unpacked(packed: Packed[Any]) -> Any:
    """float64 weights [rows, ld]."""
    if packed.format == FORMATS["bfloat16"]:
        return (packed.codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if packed.scales is None:
        return packed.codes.astype(np.float64)
    if packed.format == FORMATS["int8"]:
        return packed.codes * packed.scales[:, None].astype(np.float64)
    group = packed.ld // packed.scales.shape[1]
    zeros = np.full(packed.scales.shape, 8) if packed.zeros is None else packed.zeros.astype(int)
    scales = packed.scales.astype(np.float64)
    return np.repeat(scales, group, 1) * (nibbles(packed).astype(int) - np.repeat(zeros, group, 1))


def check(packed: Packed[Any], parts: list[Any], gated: bool) -> None:
    """Its rows are those of the parts in their places, and zero elsewhere."""
    rows, k, want = unpacked(packed), parts[0].shape[1], np.zeros((packed.codes.shape[0], packed.ld))
    if gated:
        for output in range(len(parts[0])):
            want[output // 8 * 16 + output % 8, :k] = parts[0][output]
            want[output // 8 * 16 + output % 8 + 8, :k] = parts[1][output]
    else:
        want[: sum(map(len, parts)), :k] = np.concatenate(parts)
    np.testing.assert_array_equal(rows, want)
    assert packed.n == sum(map(len, parts))
    assert len(rows) % 16 == 0
    assert packed.ld % (128 if packed.format > 3 else 64) == 0


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float32-bf16x3", "bfloat16", "float16"])
def test_floats_of_every_kind(dtype: str, gated: bool) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 13, 70)).astype(np.float32)
    second = second if gated else second[:5]
    rounding = {"bfloat16": round_bf16, "float16": lambda x: x.astype(np.float16)}.get(dtype, lambda x: x)
    transposed = [np.ascontiguousarray(part.T).T for part in (first, second)]
    for parts in ([first, second], transposed):
        check(pack_floats(parts, dtype, gated=gated), [rounding(part) for part in (first, second)], gated)
    halves = [part.astype(np.float16) for part in (first, second)]
    check(pack_floats(halves, dtype, gated=gated), [rounding(part.astype(np.float32)) for part in halves], gated)
    bits = [bf16(part) for part in (first, second)]
    widened = [rounding(round_bf16(part).astype(np.float32)) for part in (first, second)]
    check(pack_floats(bits, dtype, gated=gated), widened, gated)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int8-fast", "int4", "int4-g128"])
def test_integers_are_those_of_the_quantiser(dtype: str, gated: bool) -> None:
    rng = np.random.default_rng(2)
    parts = [rng.standard_normal((20, 150)).astype(np.float32) for _ in range(2)]
    want = []
    for part in parts:
        codes, scales = _C.quantize(part, "int8" if dtype == "int8-fast" else dtype)
        wide = np.repeat(scales, GROUPS.get(dtype, 150), 1)[:, :150].astype(np.float64)
        want.append(wide * (codes.astype(int) - (8 if dtype in GROUPS else 0)))
    check(pack_floats(parts, dtype, gated=gated), want, gated)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["int4", "int4-g128", "int4z", "int4z-g128"])
@pytest.mark.parametrize("whole", [False, True])
def test_codes_of_a_checkpoint(dtype: str, gated: bool, whole: bool) -> None:
    rng = np.random.default_rng(3)
    k, group = 200, GROUPS[dtype]
    groups = 1 if whole else -(-k // group)
    parts, want = [], []
    for _ in range(2):
        codes = rng.integers(0, 16, (11, k)).astype(np.uint8)
        scales = rng.random((11, groups)).astype(np.float16).astype(np.float32)
        zeros = rng.integers(0, 17, (11, groups)).astype(np.uint8) if dtype.startswith("int4z") else None
        parts.append((codes, scales, zeros))
        spread = [np.repeat(each, k if whole else group, 1)[:, :k] for each in (scales, zeros) if each is not None]
        want.append(
            spread[0].astype(np.float64) * (codes.astype(int) - (8 if zeros is None else spread[1].astype(int)))
        )
    packed = pack_codes(parts, dtype, gated=gated, group_size=0 if whole else group)
    rows = unpacked(packed)
    rows[:, k:] = np.where((zeros_of(packed) == 16)[:, k:], 0, rows[:, k:])  # no code equals a zero point of 16
    np.testing.assert_array_equal(rows[:, k:], 0)
    for i, part in enumerate(want):
        at = [r // 8 * 16 + 8 * i + r % 8 if gated else 11 * i + r for r in range(11)]
        np.testing.assert_array_equal(rows[at, :k], part)


def zeros_of(packed: Packed[Any]) -> Any:
    group = packed.ld // packed.scales.shape[1]
    return np.full((len(packed.scales), packed.ld), 8) if packed.zeros is None else np.repeat(packed.zeros, group, 1)


def test_int8_codes_keep_their_lowest_value() -> None:
    codes = np.random.default_rng(4).integers(-128, 128, (5, 40)).astype(np.int8)
    scales = np.linspace(0.5, 2, 5, dtype=np.float32)[:, None]
    check(pack_codes([(codes, scales, None)], "int8-fast"), [codes * scales.astype(np.float64)], False)


def test_biases_stand_where_their_rows_do() -> None:
    weights = [np.ones((10, 4), np.float32), np.ones((10, 4), np.float32)]
    biases = [np.arange(10, dtype=np.float32), 100 + np.arange(10, dtype=np.float32)]
    plain = pack_floats(weights, "float32", bias=biases)
    np.testing.assert_array_equal(plain.bias, [*biases[0], *biases[1], *[0] * 12])
    gated = pack_floats(weights, "float32", gated=True, bias=biases)
    want = [*range(8), *range(100, 108), 8, 9, *[0] * 6, 108, 109, *[0] * 6]
    np.testing.assert_array_equal(gated.bias, want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: pack_floats([w * np.float32(1e6)], "float16", name="head"), "row 0 of part 0 of head"),
        (lambda w: pack_codes([(np.full((3, 32), 16, np.uint8), w[:, :1], None)], "int4"), "a code must be 0 to 15"),
        (lambda w: pack_codes([(np.zeros((3, 32), np.uint8), w[:, :1] * np.float32(1e6), None)], "int4"), "row 0"),
        (lambda w: pack_codes([(np.zeros((3, 32), np.int8), w[:, :1] * np.float32(np.nan), None)], "int8"), "finite"),
        (
            lambda w: pack_codes([(np.zeros((3, 32), np.uint8), w[:, :1], np.full((3, 1), 17, np.uint8))], "int4z"),
            "a zero point must be 0 to 16",
        ),
    ],
)
def test_what_a_format_does_not_hold(make: Any, message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        make(np.ones((3, 32), np.float32))


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # joined, gated; transposed, biased, a tied table
def test_a_network_is_packed_whole(name: str) -> None:
    checkpoint = open_checkpoint(toy_folder(name))
    network = network_of(checkpoint)
    tensors = bind(network, checkpoint)
    lowered = Lowering(network, "float32")
    uploads: list[Any] = []
    weights: DeviceWeights[Any] = DeviceWeights(lowered, lambda array: uploads.append(array) or array.copy())
    load_weights(weights, lowered, tensors, progress=False)
    assert list(weights.matrices) == list(lowered.matrices.values())
    assert list(weights.vectors) == [*lowered.vectors.values(), *lowered.biases.values()]
    assert len(uploads) == sum(len(packed.arrays) for packed in weights.matrices.values()) + len(weights.vectors)
    tensors = bind(network, checkpoint)
    for matrix, index in lowered.matrices.items():
        parts = []
        for source in matrix.sources:
            stored = np.asarray(tensors.tensor(source.name))
            parts.append((stored.T if source.transposed else stored)[source.begin : source.end or None])
        check(weights.matrices[index], [part.astype(np.float32) for part in parts], matrix.gated)
        described = weights.matrices[index].described(lambda array: array.ctypes.data)
        assert (described["bias"] != 0) == bool(matrix.bias)
        assert (described["n"], described["k"]) == matrix.shape
