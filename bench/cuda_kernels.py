"""Every kernel by itself on a GPU, beside this card's ceilings, as JSON lines.

    python bench/cuda_kernels.py [--only REGEX] [--copy GB/s] [--tiny]

Each case is checked first (another kernel, or NumPy), then captured into a CUDA graph of many launches over inputs that
together are larger than the second-level cache, and replayed: microseconds a launch are medians of replays, the gap
between two kernels of a graph included, as in a decode step. gb_s counts each input read and each output written once.
--tiny: small shapes, each timed once by the clock; with PYLLM_CUDA_EMULATOR=1 it tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cuda_choices import choices

from pyllm.devices import cuda_driver
from pyllm.devices.cuda_packing import FORMATS

# Matmuls of one layer and the head, as cuda_random.py's models have them: (name, N, K, gated).
SHAPES: dict[str, list[tuple[str, int, int, bool]]] = {
    "llama3-8b": [
        ("qkv", 6144, 4096, False),
        ("o", 4096, 4096, False),
        ("gate_up", 28672, 4096, True),
        ("down", 4096, 14336, False),
        ("head", 128256, 4096, False),
    ],
    "qwen2.5-0.5b": [
        ("qkv", 1152, 896, False),
        ("o", 896, 896, False),
        ("gate_up", 9728, 896, True),
        ("down", 896, 4864, False),
        ("head", 151936, 896, False),
    ],
    "gpt2-124m": [
        ("qkv", 2304, 768, False),
        ("o", 768, 768, False),
        ("fc", 3072, 768, False),
        ("proj", 768, 3072, False),
        ("head", 50257, 768, False),
    ],
}
WEIGHT_BITS = {"bfloat16": 16.0, "int8": 8.0, "int4": 4.5}
ROWS = (1, 2, 4, 8, 16, 64)
SILU = 5
CACHE = 192 << 20  # three times the second-level cache of the largest card
LAUNCHES = 50  # in one graph, at least

Case = dict[str, Any]


class Card:
    """The device, its kernels, and arrays on it."""

    def __init__(self, tiny: bool) -> None:
        self.module, self.xp = cuda_driver.load()
        self.tiny = tiny
        self.emulated = bool(self.module.emulated)
        self.stream = None if self.emulated else self.xp.cuda.Stream(non_blocking=True)

    def random(self, shape: tuple[int, ...], kind: str) -> Any:
        """Device array of "float32", "bfloat16" (uint16), "bytes" or "half" numbers that suit as scales."""
        count = int(np.prod(shape))
        if kind == "bytes":
            return self.xp.random.randint(0, 256, count, dtype=np.uint8).reshape(shape)
        values = (self.xp.random.random(count) - 0.5).astype(np.float32) * np.float32(0.1)
        if kind == "half":
            return abs(values).astype(np.float16).reshape(shape)
        if kind == "bfloat16":
            return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(shape)
        return values.reshape(shape)

    def pointer(self, array: Any) -> int:
        return int(array.ctypes.data if self.emulated else array.data.ptr)

    def host(self, array: Any) -> np.ndarray:
        return np.asarray(array) if self.emulated else self.xp.asnumpy(array)

    def synchronise(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()

    def microseconds(self, launch: Callable[[int, int], Any], inputs: int) -> float:
        """Of launch(index of its input, stream), over all inputs in turn."""
        if self.stream is None or self.tiny:
            began = time.perf_counter()
            launch(0, 0 if self.stream is None else self.stream.ptr)
            self.synchronise()
            return (time.perf_counter() - began) * 1e6
        count = max(LAUNCHES, inputs)
        launch(0, self.stream.ptr)
        with self.stream:
            self.stream.begin_capture()
            for i in range(count):
                launch(i % inputs, self.stream.ptr)
            graph = self.stream.end_capture()
            times = []
            for _ in range(12):
                begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
                begin.record(self.stream)
                graph.launch(self.stream)
                end.record(self.stream)
                end.synchronize()
                times.append(self.xp.cuda.get_elapsed_time(begin, end))
        return statistics.median(times[2:]) * 1e3 / count


def matrix(card: Card, kind: str, n: int, k: int, gated: bool) -> tuple[dict[str, Any], list[Any]]:
    """A random matrix of a format as bindings take it, and the arrays it lives in."""
    rows = -(-n // 16) * 16
    ld = -(-k // (128 if kind == "int4" else 64)) * (128 if kind == "int4" else 64)
    if kind == "bfloat16":
        arrays = [card.random((rows, ld), "bfloat16")]
        if ld > k:
            arrays[0][:, k:] = 0
    elif kind == "int8":
        arrays = [card.random((rows, ld), "bytes"), abs(card.random((rows,), "float32")) / 100]
    else:
        arrays = [card.random((rows, ld // 2), "bytes"), card.random((rows, ld // 32), "half") / 10]
    described = {"format": FORMATS[kind], "codes": card.pointer(arrays[0]), "zeros": 0, "bias": 0}
    described |= {"scales": card.pointer(arrays[1]) if len(arrays) > 1 else 0}
    return described | {"n": n, "k": k, "ld": ld, "gated": gated}, arrays


def linear_cases(card: Card, only: str) -> Iterator[Case]:
    """linear_skinny beside linear_tiles, which is another kernel: the same numbers up to the order of sums."""
    for model, shapes in SHAPES.items():
        for name, n, k, gated in shapes:
            for kind in WEIGHT_BITS:
                label = f"{model} {name} {n}x{k} {kind}"
                if not re.search(only, f"linear {label}"):
                    continue
                size = (min(n, 64), min(k, 128)) if card.tiny else (n, k)
                yield from linear_of(card, label, kind, *size, gated)


def linear_of(card: Card, label: str, kind: str, n: int, k: int, gated: bool) -> Iterator[Case]:
    size = n * k * WEIGHT_BITS[kind] / 8
    copies = 1 if card.tiny else max(1, int(CACHE // size) + 1)
    matrices = [matrix(card, kind, n, k, gated) for _ in range(copies)]
    outputs, activation = (n // 2, SILU) if gated else (n, 0)
    ld, out_ld = -(-k // 64) * 64, -(-outputs // 64) * 64
    x = card.random((max(ROWS), ld), "bfloat16")
    ys = [card.xp.zeros((max(ROWS), out_ld), np.float32) for _ in range(2)]
    for rows in ROWS[:: 3 if card.tiny else 1]:

        def call(kernel: Any, i: int, y: Any, stream: int, rows: int = rows) -> None:
            kernel(
                w=matrices[i][0],
                type="bfloat16",
                x=(card.pointer(x), ld, "bfloat16"),
                rows=rows,
                activation=activation,
                scale=1.0,
                softcap=0.0,
                residual=(0, 0, "float32"),
                y=(card.pointer(y), out_ld, "float32"),
                stream=stream,
            )

        for kernel, y in zip((card.module.linear_skinny, card.module.linear_tiles), ys, strict=True):
            call(kernel, 0, y, 0)
        card.synchronise()
        mine, other = (card.host(y[:rows, :outputs]).astype(np.float64) for y in ys)
        error = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
        if not error < 1e-2:
            raise SystemExit(f"{label}, {rows} rows: two kernels differ by {error:.3g}")
        us = card.microseconds(lambda i, stream: call(card.module.linear_skinny, i, ys[0], stream), copies)
        moved = size + rows * (k * 2 + outputs * 4)
        yield {"case": f"linear {label}, {rows} rows", "us": us, "bytes": moved, "error": error}


def decode_attention(card: Card, only: str) -> Iterator[Case]:
    """One query a sequence over paged bfloat16 keys and values; the first head is checked."""
    for model, heads, kv_heads, width in (("llama3-8b", 32, 8, 128), ("qwen2.5-0.5b", 14, 2, 64), ("gpt2", 12, 12, 64)):
        for sequences, context in ((1, 1024), (1, 8192), (64, 512)):
            label = f"attention decode {model}, {sequences} x {context}"
            if re.search(only, label):
                few = (2, 70) if card.tiny else (sequences, context)
                yield {"case": label, **attention_of(card, *few, heads, kv_heads, width)}


def attention_of(card: Card, sequences: int, context: int, heads: int, kv_heads: int, width: int) -> Case:
    xp, padded = card.xp, -(-width // 32) * 32
    half = 32 * padded * 2  # bytes of the keys of one head in one block
    blocks = -(-context // 32)
    copies = 1 if card.tiny else max(1, CACHE // (sequences * blocks * kv_heads * 2 * half) + 1)
    store = xp.zeros((copies, sequences, blocks, kv_heads, 2, 32, padded), np.uint16)
    store[..., :width] = card.random((copies, sequences, blocks, kv_heads, 2, 32, width), "bfloat16")
    offsets = np.arange(copies * sequences * blocks, dtype=np.uint64) * np.uint64(2 * half * kv_heads)
    tables = xp.asarray((np.uint64(card.pointer(store)) + offsets).reshape(copies, sequences, blocks))
    row = xp.arange(sequences, dtype=np.int32)
    starts = xp.arange(sequences + 1, dtype=np.int32)
    positions, counts = (xp.full(sequences, value, np.int32) for value in (context - 1, context))
    q, ld = card.random((sequences, heads * width), "float32"), heads * width
    out = xp.zeros((sequences, ld), np.float32)
    step = {"positions": card.pointer(positions), "sequence": card.pointer(row), "starts": card.pointer(starts)}
    step |= {"context": card.pointer(counts), "table_width": blocks, "rows": sequences, "sequences": sequences}
    step |= {"most_rows": 1, "longest": context}
    kv = {"format": 1, "heads": kv_heads, "head_dim": width, "layer_offset": 0}
    args = {"q": (card.pointer(q), ld, "float32"), "out": (card.pointer(out), ld, "float32"), "num_heads": heads}
    args |= {"scale": width**-0.5, "type": "bfloat16", "kv": kv}
    steps = [{**step, "blocks": card.pointer(table)} for table in tables]
    workspace = xp.zeros(max(1, card.module.attend_workspace(args, steps[0])), np.uint8)
    args["workspace"] = card.pointer(workspace)
    card.module.attend(args, steps[0], 0)
    card.synchronise()
    expected = first_head(card.host(store[0, 0, :, 0]), card.host(q[0, :width]), context, width)
    error = float(np.linalg.norm(card.host(out[0, :width]) - expected) / np.linalg.norm(expected))
    if not error < 2e-2:
        raise SystemExit(f"attention differs from NumPy by {error:.3g}")
    us = card.microseconds(lambda i, stream: card.module.attend(args, steps[i], stream), copies)
    return {"us": us, "bytes": sequences * context * kv_heads * width * 4, "error": error}


def first_head(blocks: np.ndarray, q: np.ndarray, context: int, width: int) -> np.ndarray:
    """Attention of one query over the keys and values in blocks [B, 2, 32, Ep] of bfloat16 bits."""
    floats = (blocks.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    keys, values = (floats[:, i].reshape(-1, floats.shape[-1])[:context, :width] for i in range(2))
    scores = keys @ q.astype(np.float64) * width**-0.5
    p = np.exp(scores - scores.max())
    return np.asarray(p @ values / p.sum())


def norms(card: Card, only: str) -> Iterator[Case]:
    """RMS norm of float32 rows into bfloat16."""
    for rows, width in ((1, 4096), (64, 4096), (2048, 4096)):
        label = f"norm rms {rows} x {width}"
        if not re.search(only, label):
            continue
        rows, width = (min(rows, 3), 256) if card.tiny else (rows, width)
        copies = 1 if card.tiny else max(1, CACHE // (rows * width * 6) + 1)
        x = card.random((copies, rows, width), "float32")
        weight, out = card.xp.ones(width, np.float32), card.xp.zeros((rows, width), np.uint16)

        fixed = {"out": (card.pointer(out), width, "bfloat16"), "rows": rows, "n": width, "rms": True, "eps": 1e-5}
        fixed |= {"weight": card.pointer(weight), "bias": 0, "residual": (0, 0, "float32")}
        inputs = [(card.pointer(each), width, "float32") for each in x]

        def launch(i: int, stream: int, inputs: Any = inputs, fixed: Any = fixed) -> None:
            card.module.norm(x=inputs[i], stream=stream, **fixed)

        launch(0, 0)
        card.synchronise()
        first = card.host(x[0]).astype(np.float64)
        expected = first / np.sqrt((first**2).mean(axis=1, keepdims=True) + 1e-5)
        got = (card.host(out).astype(np.uint32) << 16).view(np.float32)
        error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        if not error < 1e-2:
            raise SystemExit(f"{label} differs from NumPy by {error:.3g}")
        yield {"case": label, "us": card.microseconds(launch, copies), "bytes": rows * width * 6, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: cases to run")
    parser.add_argument("--copy", type=float, help="copy bandwidth of this card in GB/s (cuda_ceilings.py)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    args = parser.parse_args()
    card = Card(args.tiny)
    for cases in (linear_cases, decode_attention, norms, choices):
        for case in cases(card, args.only):
            moved = case.pop("bytes")
            case["gb_s"] = round(moved / case["us"] / 1e3, 1)
            if args.copy:
                case["of_copy"] = round(case["gb_s"] / args.copy, 3)
            case["us"] = round(case["us"], 2)
            case["error"] = float(f"{case['error']:.2g}")
            print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
