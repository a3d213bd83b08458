"""CUDA attention against the float64 reference: every option, format and path; and that a row is its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device, device  # noqa: F401
from cuda_attention import BLOCK, FORMATS, TYPES, Cache, Case, check, half_block, padded, run

from pyllm.program import reference

MIXED = ((1, 1), (31, 1), (32, 1), (33, 3), (257, 1), (600, 1), (-1, 1), (70, 70))
KINDS = [(kind, kind) for kind in TYPES] + [("int8", "bfloat16"), ("int8", "float16")]


@pytest.mark.parametrize(("kv", "kind"), [*KINDS, ("int8", "float32"), ("float16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize(("heads", "head_dim"), [((14, 2), 64), ((4, 4), 20), ((8, 1), 128), ((4, 4), 80), ((4, 2), 8)])
def test_contexts(device: Device, kv: str, kind: str, heads: tuple[int, int], head_dim: int) -> None:  # noqa: F811
    sequences = MIXED if head_dim in (64, 20) else ((1, 1), (33, 1), (257, 2), (75, 70))
    check(device, Case(kv, kind, heads, head_dim, sequences, out=kind, idle_rows=2))


OPTIONS: list[dict[str, Any]] = [
    {"window": 7},
    {"window": 300},
    {"softcap": 1.5},
    {"bias": "table"},
    {"bias": "slopes"},
    {"causal": False},
    {"causal": False, "window": 9},
    {"cross": True},
    {"window": 40, "softcap": 2.0, "bias": "table"},
    {"causal": False, "bias": "table"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)))
@pytest.mark.parametrize(("kv", "kind"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float16")])
def test_options(device: Device, kv: str, kind: str, options: dict[str, Any]) -> None:  # noqa: F811
    sequences = ((5, 5), (83, 83), (20, 1)) if not options.get("causal", True) else ((340, 1), (600, 3), (90, 80))
    if not options.get("causal", True):
        sequences = ((5, 5), (83, 83))
    check(device, Case(kv, kind, (4, 2), 32, sequences, capture=True, **options))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_bias_by_content(device: Device, kind: str) -> None:  # noqa: F811
    check(device, Case(kind, kind, (4, 4), 20, ((7, 7), (45, 45)), causal=False, bias="content", capture=True))


@pytest.mark.parametrize(("kv", "kind"), KINDS)
def test_a_row_is_its_own(device: Device, kv: str, kind: str) -> None:  # noqa: F811
    """Same bits alone, beside others, for a longer bucket, and with one block for all chunks of a row."""
    case = Case(kv, kind, (6, 2), 64, ((600, 1), (-1, 2), (33, 2), (540, 1), (100, 70)), out=kind)
    together = run(device, case)
    # Of the longest bucket a block takes several chunks, but not all.
    others = [run(device, replace(case, **o)) for o in ({"workspace": False}, {"longest": 2000}, {"longest": 30000})]
    for s, out in enumerate(together.out):
        for other in (run(device, case, only=s).out[0], *(o.out[s] for o in others)):
            assert out.tobytes() == other.tobytes(), s


@pytest.mark.parametrize(
    ("kv", "kind", "head_dim"),
    [
        ("bfloat16", "bfloat16", 256),
        ("int8", "float16", 256),
        ("float16", "float16", 33),
        ("bfloat16", "bfloat16", 160),
        ("float32", "float32", 300),
        ("float32", "float32", 800),
    ],
)
def test_unusual_widths(device: Device, kv: str, kind: str, head_dim: int) -> None:  # noqa: F811
    check(device, Case(kv, kind, (4, 2), head_dim, ((33, 1), (40, 20)), out=kind))


@pytest.mark.parametrize(("kv", "kind"), KINDS)
def test_what_is_no_number_stays_with_who_sees_it(device: Device, kv: str, kind: str) -> None:  # noqa: F811
    case = Case(kv, kind, (4, 2), 64, ((300, 1), (300, 1), (70, 70)))
    for sequences in (case.sequences, case.sequences[::-1]):
        good = run(device, replace(case, sequences=sequences))
        found = run(device, replace(case, sequences=sequences, bad_key=np.nan))
        sees = sequences[0][0] - sequences[0][1] + np.arange(sequences[0][1]) >= 3
        assert np.isnan(found.out[0][sees, :2]).any(-1).all()
        np.testing.assert_array_equal(found.out[0][~sees], good.out[0][~sees])
        np.testing.assert_array_equal(found.out[0][:, 2:], good.out[0][:, 2:])
        for s in (1, 2):
            np.testing.assert_array_equal(found.out[s], good.out[s])


def test_nothing_to_do(device: Device) -> None:  # noqa: F811
    for sequences in (((-1, 1),), ((-1, 0),)):
        assert not check(device, Case(sequences=sequences, idle_rows=3)).out[0].any()


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(20, 20), (64, 24), (33, 0)])
def test_append(device: Device, kv: str, interleaved: bool, head_dim: int, rotary_dim: int) -> None:  # noqa: F811
    heads, kv_heads = 3, 2
    rng = np.random.default_rng(1)
    positions, sequence = np.array([30, 31, 32, 0, 5], np.int32), np.array([0, 0, 0, 1, -1], np.int32)
    columns = (heads + 2 * kv_heads) * head_dim
    ld = -(-columns // 64) * 64
    qkv = rng.standard_normal((5, ld)).astype(np.float32)
    qkv[1, heads * head_dim] = 1e3
    qkv[3, heads * head_dim : (heads + 1) * head_dim] = 0.0
    rope = rng.standard_normal((5, 64)).astype(np.float32)
    cache = Cache(device, kv, kv_heads, head_dim, 5)
    cache.upload()
    before = device.to_host(cache.memory)
    table = np.array([[cache.address(4), cache.address(1)], [cache.address(2), 0]], np.uint64)
    arrays = [device.to_device(x) for x in (qkv, rope, positions, sequence, table)]
    at = [device.pointer(x) for x in arrays]
    args = {"qkv": (at[0], ld, "float32"), "num_heads": heads, "interleaved": interleaved, "kv": cache.fields()}
    if rotary_dim:
        args |= {"rope": (at[1], 64, "float32"), "rotary_dim": rotary_dim}
    step = {"positions": at[2], "sequence": at[3], "blocks": at[4], "table_width": 2, "rows": 5, "sequences": 2}
    device.module.append(args, step)

    after = device.to_host(arrays[0])
    split = qkv[:, :columns].reshape(5, heads + 2 * kv_heads, head_dim)
    turned = np.array(split, np.float64)
    if rotary_dim:
        both = slice(0, heads + kv_heads)
        turned[:4, both] = reference.rope(split[:4, both], rope[:4, :rotary_dim], interleaved=interleaved)
    found = after[:, :columns].reshape(split.shape)
    np.testing.assert_allclose(found, turned, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after[:, columns:], qkv[:, columns:])
    memory = device.to_host(cache.memory)
    size = {"float32": 4, "int8": 1}.get(kv, 2)
    expected = before.copy()
    for row, (block, slot) in enumerate([(4, 30), (4, 31), (1, 0), (2, 0)]):
        for head in range(kv_heads):
            for i in range(2):
                data, _ = half_block(found[row : row + 1, heads + i * kv_heads + head], kv)
                data = np.frombuffer(data, np.uint8)
                at0, row_bytes = cache.offset(head) + i * cache.half, padded(head_dim) * size
                expected[block, at0 + slot * row_bytes : at0 + (slot + 1) * row_bytes] = data[:row_bytes]
                if kv == "int8":
                    scales = at0 + BLOCK * row_bytes
                    expected[block, scales + 4 * slot : scales + 4 * slot + 4] = data[BLOCK * row_bytes :][:4]
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_int8_keeps_what_is_no_number(device: Device, bad: float) -> None:  # noqa: F811
    cache = Cache(device, "int8", 1, 8, 1)
    cache.upload()
    qkv = np.zeros((1, 64), np.float32)
    qkv[0, 9], qkv[0, 16:24] = bad, 1e-36
    arrays = [device.to_device(x) for x in (qkv, np.zeros(1, np.int32), np.array([[cache.address(0)]], np.uint64))]
    at = [device.pointer(x) for x in arrays]
    step = {"positions": at[1], "sequence": at[1], "blocks": at[2], "table_width": 1, "rows": 1, "sequences": 1}
    device.module.append({"qkv": (at[0], 64, "float32"), "num_heads": 1, "kv": cache.fields()}, step)
    memory = device.to_host(cache.memory)[0, cache.offset(0) :]
    assert np.isnan(memory[BLOCK * 32 :][:4].view(np.float32)[0])
    assert not memory[cache.half : cache.half + 32].any()
    assert not memory[cache.half + BLOCK * 32 :][:4].any()


def test_store_cross(device: Device) -> None:  # noqa: F811
    rng = np.random.default_rng(2)
    cache = Cache(device, "float16", 2, 20, 3)
    cache.upload()
    kv = rng.standard_normal((3, 128)).astype(np.float32)
    table = np.array([[cache.address(2), cache.address(0)]], np.uint64)
    positions, sequence = np.array([31, 32, 4], np.int32), np.array([0, 0, -1], np.int32)
    arrays = [device.to_device(x) for x in (kv, positions, sequence, table)]
    at = [device.pointer(x) for x in arrays]
    step = {"positions": at[1], "sequence": at[2], "cross_blocks": at[3], "cross_width": 2, "rows": 3, "sequences": 1}
    device.module.store_cross({"kv": (at[0], 128, "float32"), "cache": cache.fields()}, step)
    memory = device.to_host(cache.memory).view(np.float16)
    halves = kv[:, :80].reshape(3, 2, 2, 20).astype(np.float16)
    for row, (block, slot) in enumerate([(2, 31), (0, 0)]):
        for head in range(2):
            for i in range(2):
                at0 = (cache.offset(head) + i * cache.half) // 2 + slot * 32
                np.testing.assert_array_equal(memory[block, at0 : at0 + 20], halves[row, i, head])
                assert not memory[block, at0 + 20 : at0 + 32].any()
    assert (memory[1].view(np.uint16) == 0xFFFF).all()
