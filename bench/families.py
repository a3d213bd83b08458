"""Whether any family is slower than Llama's path for the bytes it reads: decode, prefill and encoding, as JSON.

    python bench/families.py [--threads N] [--dtype bfloat16] [--steps 64] [--only gpt2,bloom]

One wide but shallow random model a family (1024 columns, 4 layers, a vocabulary of 16,384), batch 1. Decode:
nanoseconds a step for each kilobyte of weights that a step multiplies by; prefill and encoding of 256 tokens: the same
a token. Llama is measured before and after each family and the slower of the two is what the family is compared to, as
machines slow down meanwhile; each figure is the best of five runs. `ratio` above 1.10: slower by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from family_configs import CONFIGS
from random_model import write_random

import pyllm
from pyllm import _C
from pyllm.decode.options import GenerationOptions
from pyllm.program.program import Experts, HeadLinear, Linear, Program

WARM_UP = 8
PROMPT = 256


def bytes_read(program: Program, dtype: str, *, every_row: bool = False) -> int:
    """Bytes of the matrices that a step of one row multiplies by; every_row: without those that only rows whose output
    is wanted meet (the head)."""
    size = 4 if dtype == "float32" else 2
    total = 0
    for op in program.ops:
        if isinstance(op, Linear) and not (every_row and op.out.rows == "R"):
            total += op.weight.shape[0] * op.weight.shape[1]
        elif isinstance(op, HeadLinear):
            total += sum(weight.shape[0] * weight.shape[1] for weight in op.weights)
        elif isinstance(op, Experts):
            each = op.gate_up[0].shape[0] * op.gate_up[0].shape[1] + op.down[0].shape[0] * op.down[0].shape[1]
            total += op.top_k * each + sum(m.shape[0] * m.shape[1] for m in op.shared or ())
    return total * size


def step_times(model: Any, prompt: list[int], steps: int) -> tuple[float, float]:
    """(seconds of the step that reads the prompt, median seconds of a decode step) of a greedy text."""
    options = GenerationOptions.build({}, {"max_new_tokens": steps + WARM_UP})
    sources = None if model.network.encode is None else [prompt]
    begin = prompt if sources is None else [1]
    policy = model._policies([begin], options, sources)[0]
    times = []
    with model._session() as engine:
        engine.add(policy, model._sources(engine, [policy])[0])
        while engine.busy:
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1 + WARM_UP :])


def measure(folder: Path, dtype: str, threads: int, steps: int) -> dict[str, float]:
    """Nanoseconds for each kilobyte of weights."""
    with pyllm.load(folder, dtype=dtype, num_threads=threads) as model:
        prompt = np.random.RandomState(1).randint(3, model.program.vocab_size, size=PROMPT).tolist()
        found: dict[str, float] = {}
        if model.network.step is not None:
            read = bytes_read(model.network.step, dtype) / 1e3
            runs = [step_times(model, prompt, steps) for _ in range(5)]
            first, decode = (min(times) for times in zip(*runs, strict=True))
            found["decode"] = decode * 1e9 / read
            if model.network.encode is None:
                body = bytes_read(model.network.step, dtype, every_row=True) / 1e3
                found["prefill"] = first * 1e9 / body / PROMPT
        if model.network.encode is not None:
            body = bytes_read(model.network.encode, dtype, every_row=True) / 1e3
            run = (
                (lambda: model.forward([prompt], output="hidden"))
                if model.network.step is None
                else (lambda: model.encode(prompt))
            )
            run()
            times = []
            for _ in range(5):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
            found["encode"] = min(times) * 1e9 / body / PROMPT
        return found


def compare(name: str, folders: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    before = measure(folders["llama"], args.dtype, args.threads, args.steps)
    found = measure(folders[name], args.dtype, args.threads, args.steps)
    after = measure(folders["llama"], args.dtype, args.threads, args.steps)
    llama = {what: max(before[what], after[what]) for what in before}
    llama["encode"] = llama["prefill"]
    ratios = {what: round(value / llama[what], 3) for what, value in found.items()}
    return {"family": name, "nanoseconds_a_kilobyte": {k: round(v, 3) for k, v in found.items()}, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--only", help="families, separated by commas")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else [name for name in CONFIGS if name != "llama"]
    print(json.dumps({"isa": _C.isa(), "threads": args.threads, "dtype": args.dtype}))
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"llama": Path(temporary) / "llama"}
        for name in ("llama", *names):
            folders[name] = Path(temporary) / name
            folders[name].mkdir(exist_ok=True)
            write_random(folders[name], CONFIGS[name], "BF16")
            if name != "llama":
                print(json.dumps(compare(name, folders, args)), flush=True)
                (folders[name] / "model.safetensors").unlink()


if __name__ == "__main__":
    main()
