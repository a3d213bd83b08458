"""Attention cases on CUDA devices: random batches over a paged cache, and what the float64 reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_arrays import Device

from pyllm.program import reference

BLOCK, LAYERS, LAYER = 32, 2, 1
FORMATS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3}
TYPES = ("float32", "bfloat16", "float16")


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def padded(head_dim: int) -> int:
    return -(-head_dim // 32) * 32


def half_block(x: np.ndarray, kv_format: str) -> tuple[bytes, np.ndarray]:
    """x float32 [tokens <= 32, E]: what a block holds of one head (keys or values), bytes of ones for tokens that
    were never written; and the numbers that these bytes stand for."""
    tokens, head_dim = x.shape
    wide = np.zeros((tokens, padded(head_dim)), np.float32)
    wide[:, :head_dim] = x
    rest = BLOCK - tokens
    if kv_format == "int8":
        scale = np.abs(x).max(1) / np.float32(127)
        scale[~np.isfinite(scale)] = np.nan
        codes = np.rint(np.nan_to_num(wide / np.where(scale > 0, scale, 1)[:, None])).astype(np.int8)
        data = codes.tobytes() + b"\xff" * (rest * wide.shape[1])
        return data + scale.tobytes() + b"\xff" * (4 * rest), (codes * scale[:, None])[:, :head_dim]
    if kv_format == "bfloat16":
        stored, value = to_bf16(wide), from_bf16(to_bf16(wide))
    elif kv_format == "float16":
        stored = wide.astype(np.float16)
        value = stored.astype(np.float32)
    else:
        stored = value = wide
    return stored.tobytes() + b"\xff" * (rest * wide.shape[1] * stored.itemsize), value[:, :head_dim]


class Cache:
    """Blocks of 32 tokens in an order of their own; host twin of device memory."""

    def __init__(self, dev: Device, kv_format: str, heads: int, head_dim: int, blocks: int, seed: int = 0) -> None:
        self.dev, self.kv_format, self.heads, self.head_dim = dev, kv_format, heads, head_dim
        self.half = len(half_block(np.zeros((1, head_dim), np.float32), kv_format)[0])
        self.block_bytes = LAYERS * heads * 2 * self.half
        self.host = np.full((blocks, self.block_bytes), 0xFF, np.uint8)
        self.order = list(np.random.default_rng(seed).permutation(blocks))
        self.memory: Any = None

    def upload(self) -> None:
        self.memory = self.dev.to_device(self.host)

    def address(self, block: int) -> int:
        return self.dev.pointer(self.memory) + block * self.block_bytes

    def offset(self, head: int) -> int:
        return (LAYER * self.heads + head) * 2 * self.half

    def fill(self, k: np.ndarray, v: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
        """k, v [C, K, E]: their blocks, and the numbers that the cache then holds."""
        blocks, kept = [], [np.array(k), np.array(v)]
        for first in range(0, len(k), BLOCK):
            block = self.order.pop()
            blocks.append(int(block))
            for head in range(self.heads):
                for i, x in enumerate((k, v)):
                    data, value = half_block(x[first : first + BLOCK, head], self.kv_format)
                    at = self.offset(head) + i * self.half
                    self.host[block, at : at + self.half] = np.frombuffer(data, np.uint8)
                    kept[i][first : first + BLOCK, head] = value
        return blocks, kept[0], kept[1]

    def fields(self) -> dict[str, Any]:
        return {
            "format": FORMATS[self.kv_format],
            "heads": self.heads,
            "head_dim": self.head_dim,
            "layer_offset": self.offset(0),
        }


@dataclass
class Case:
    """sequences: (keys in the cache, rows of this step) of each; negative keys: an idle one."""

    kv: str = "float32"
    type: str = "float32"
    heads: tuple[int, int] = (4, 4)
    head_dim: int = 64
    sequences: tuple[tuple[int, int], ...] = ((33, 1),)
    causal: bool = True
    cross: bool = False
    window: int = 0
    softcap: float = 0.0
    bias: str = ""
    out: str = "float32"
    capture: bool = False
    workspace: bool = True
    longest: int = 0
    idle_rows: int = 0  # after the last sequence's
    bad_key: float = 0.0  # in place of a number of key 3 of the first sequence, kv head 0
    seed: int = 0


def bias_fields(case: Case, dev: Device, rows: int, keep: list[Any]) -> tuple[dict[str, Any], Any]:
    """The fields of AttendBias, and a function (first row, positions [n], keys) -> [H, n, keys]."""
    rng = np.random.default_rng(case.seed + 77)
    heads, span = case.heads[0], 41

    def up(x: np.ndarray) -> int:
        keep.append(dev.to_device(x))
        return dev.pointer(keep[-1])

    def distances(positions: np.ndarray, keys: int) -> np.ndarray:
        return np.arange(keys)[None, :] - positions[:, None]

    if case.bias == "slopes":
        slopes = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32)
        return {"slopes": up(slopes)}, lambda r, p, n: slopes[:, None, None] * distances(p, n)
    table = rng.standard_normal((heads, span)).astype(np.float32)
    if case.bias == "table":
        fields = {"table": up(table), "first": -30, "span": span}
        return fields, lambda r, p, n: table[:, np.clip(distances(p, n) + 30, 0, span - 1)]
    c2p, p2c = (rng.standard_normal((rows, heads, span)).astype(np.float32) for _ in range(2))
    by_query, by_key = (rng.integers(0, span, 61).astype(np.int32) for _ in range(2))
    fields = {
        "c2p": (up(c2p), heads * span, "float32"),
        "p2c": (up(p2c), heads * span, "float32"),
        "c2p_index": up(by_query),
        "p2c_index": up(by_key),
        "indices": 61,
        "first": -30,
        "span": span,
    }

    def content(row: int, positions: np.ndarray, keys: int) -> np.ndarray:
        i = np.clip(distances(positions, keys) + 30, 0, 60)
        out = np.empty((heads, len(positions), keys))
        for n in range(len(positions)):
            out[:, n] = c2p[row + n][:, by_query[i[n]]]
            for key in range(keys):
                out[:, n, key] += p2c[row + key][:, by_key[i[n, key]]]
        return out

    return fields, content


@dataclass
class Result:
    out: list[np.ndarray]  # of each sequence [rows, H, E], as stored
    expected: list[np.ndarray]
    weights: list[np.ndarray]
    expected_weights: list[np.ndarray]
    idle: np.ndarray


def run(dev: Device, case: Case, only: int | None = None) -> Result:
    """One attend() of a case, or of one of its sequences alone."""
    heads, kv_heads = case.heads
    e, scale = case.head_dim, case.head_dim**-0.5
    rng = np.random.default_rng(case.seed)
    drawn = []
    for keys, rows in case.sequences:
        q = rng.standard_normal((rows, heads, e)).astype(np.float32)
        k, v = (rng.standard_normal((max(keys, 0), kv_heads, e)).astype(np.float32) for _ in range(2))
        drawn.append((keys, q, k, v))
    if case.bad_key:
        drawn[0][2][3, 0, 5] = case.bad_key
    if only is not None:
        drawn = [drawn[only]]
    rows = sum(len(q) for _, q, _, _ in drawn) + case.idle_rows
    blocks = sum(-(-max(keys, 0) // BLOCK) for keys, *_ in drawn) + 2
    cache = Cache(dev, case.kv, kv_heads, e, blocks, case.seed + (only or 0))
    held = [cache.fill(k, v) for _, _, k, v in drawn]
    cache.upload()
    width = max(len(b) for b, _, _ in held) + 1
    table = np.zeros((len(drawn), width), np.uint64)
    for s, (ids, _, _) in enumerate(held):
        table[s, : len(ids)] = [cache.address(b) for b in ids]
    positions, sequence, starts = [], [], [0]
    for s, (keys, q, _, _) in enumerate(drawn):
        first = 0 if case.cross or keys < 0 else keys - len(q)
        positions += list(range(first, first + len(q)))
        sequence += [s if keys >= 0 else -1] * len(q)
        starts.append(starts[-1] + len(q))
    positions += [0] * case.idle_rows
    sequence += [-1] * case.idle_rows
    context = np.array([max(keys, 0) for keys, *_ in drawn], np.int32)
    ld = -(-(heads * e + 5) // 64) * 64
    buffer = np.full((rows, ld), np.nan, np.float32)
    buffer[: starts[-1], : heads * e] = np.concatenate([q.reshape(len(q), heads * e) for _, q, _, _ in drawn])
    keep: list[Any] = []

    def up(x: Any) -> int:
        keep.append(dev.to_device(x))
        return dev.pointer(keep[-1])

    out_dtype = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}[case.out]
    out = dev.to_device(np.full((rows, ld), 0xFFFF if case.out == "bfloat16" else np.nan, out_dtype))
    longest = max(int(context.max()), case.longest)
    step = {
        "positions": up(np.array(positions, np.int32)),
        "sequence": up(np.array(sequence, np.int32)),
        "starts": up(np.array(starts, np.int32)),
        "rows": rows,
        "sequences": len(drawn),
        "most_rows": max(len(q) for _, q, _, _ in drawn),
    }
    own = {"blocks": up(table), "table_width": width, "context": up(context), "longest": longest}
    names = {"blocks": "cross_blocks", "table_width": "cross_width", "context": "cross_context"}
    step |= {names.get(n, n + "_cross"): value for n, value in own.items()} if case.cross else own
    args = {
        "q": (up(buffer), ld, "float32"),
        "out": (dev.pointer(out), ld, case.out),
        "num_heads": heads,
        "scale": scale,
        "softcap": case.softcap,
        "causal": case.causal,
        "cross": case.cross,
        "window": case.window,
        "type": case.type,
        "kv": cache.fields(),
    }
    bias_of: Any = None
    if case.bias:
        args["bias"], bias_of = bias_fields(case, dev, rows, keep)
    captured = []
    if case.capture:
        captured = [
            dev.to_device(np.full((heads, len(q), max(keys, 0)), np.nan, np.float32)) for keys, q, _, _ in drawn
        ]
        args["weights"] = up(np.array([dev.pointer(w) for w in captured], np.uint64))
    if case.workspace:
        size = dev.module.attend_workspace(args, step)
        args["workspace"] = up(np.full(max(size, 1), 0xFF, np.uint8))
    dev.module.attend(args, step)
    found = dev.to_host(out)[:, : heads * e].reshape(rows, heads, e)
    result = Result([], [], [dev.to_host(w) for w in captured], [], found[starts[-1] :])
    for s, (keys, q, _, _) in enumerate(drawn):
        result.out.append(found[starts[s] : starts[s + 1]])
        if keys < 0:
            result.expected.append(np.zeros(q.shape))
            result.expected_weights.append(np.zeros((heads, len(q), 0)))
            continue
        options: dict[str, Any] = {"scale": scale, "softcap": case.softcap, "window": case.window}
        options["causal"] = case.causal and not case.cross
        if bias_of:
            own_positions = np.arange(keys - len(q), keys)
            options["bias"] = bias_of(starts[s], own_positions, keys)
        k, v = held[s][1], held[s][2]
        qr = from_bf16(to_bf16(q)) if case.type == "bfloat16" else q.astype(case.type)
        result.expected.append(reference.attention(qr, k, v, **options))
        p = reference.attention_weights(qr, k, **options)
        result.expected_weights.append(p / p.sum(-1, keepdims=True))
    return result


def numbers(x: np.ndarray) -> np.ndarray:
    return from_bf16(x).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


# Values are of the order of 1, outputs are means of them; p is rounded to 8 (bfloat16) or 11 bits.
TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 8e-3}


def check(dev: Device, case: Case) -> Result:
    result = run(dev, case)
    tolerance = max(TOLERANCE[case.type], TOLERANCE[case.out])
    for found, expected in zip(result.out, result.expected, strict=True):
        np.testing.assert_allclose(numbers(found), expected, rtol=tolerance, atol=tolerance)
    for weights, expected in zip(result.weights, result.expected_weights, strict=False):
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=3e-6)
    assert not numbers(result.idle).any()
    return result
