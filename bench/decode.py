"""End-to-end speed: loading, prefill and batch-1 decode of a GPT-2-124M-shaped random model, as JSON.

    python bench/decode.py [--dtypes float32,bfloat16] [--threads N] [--model FOLDER] [--prompt 512] [--steps 128]

Steps are timed whole, as a user meets them: scheduling, the network, choosing the token (greedily). Medians. The
weights a decode step reads are set beside this machine's read bandwidth: a plain reader of as many bytes, with as many
threads, in the same run.
The results are checked first: tokens decoded one by one must be those of one forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from random_model import write_gpt2

import pyllm
from pyllm import _C
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import make_policy
from pyllm.engine.engine import Engine
from pyllm.program.program import Linear

WARM_UP = 8  # decode steps that are not counted
PREFILLS = 5
DECODE_PROMPT = 32


def step_seconds(model: pyllm.LanguageModel, prompt: list[int], steps: int, rows_per_step: int = 512) -> list[float]:
    """Seconds of each engine step of one greedy generation, the prompt's included."""
    options = GenerationOptions.build({}, {"max_new_tokens": steps})
    times = []
    with Engine(model._open_runner(), rows_per_step=rows_per_step) as engine:
        engine.add(make_policy(prompt, options, vocab_size=model.program.vocab_size))
        while engine.busy:
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
    return times


def check(model: pyllm.LanguageModel, prompt: list[int]) -> None:
    """Exits when decoding and one forward pass disagree."""
    result = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert isinstance(result, pyllm.Generation)
    rows = model.logits([*prompt, *result.token_ids])[len(prompt) - 1 : -1]
    if rows.argmax(axis=1).tolist() != result.token_ids:
        sys.exit("wrong result: decoded tokens are not those of one forward pass")


def weights_read(model: pyllm.LanguageModel) -> int:
    """Bytes of the matrices that one decode step multiplies by."""
    matrices = {op.weight for op in model.program.ops if isinstance(op, Linear)}
    return sum(m.shape[0] * m.shape[1] for m in matrices) * (4 if model.dtype == "float32" else 2)


def measure(folder: Path, dtype: str, threads: int, prompt_length: int, steps: int) -> dict[str, Any]:
    began = time.perf_counter()
    with pyllm.load(folder, dtype=dtype, num_threads=threads) as model:
        loaded = time.perf_counter() - began
        random = np.random.RandomState(1)
        prompt = random.randint(0, model.program.vocab_size, size=prompt_length).tolist()
        check(model, prompt[:DECODE_PROMPT])
        prefill = statistics.median(step_seconds(model, prompt, 1, prompt_length)[0] for _ in range(PREFILLS))
        decode = statistics.median(step_seconds(model, prompt[:DECODE_PROMPT], steps + WARM_UP)[1 + WARM_UP :])
        achieved = weights_read(model) / decode
        bandwidth = _C.read_bandwidth(weights_read(model), threads)
        return {
            "dtype": dtype,
            "load_seconds": round(loaded, 2),
            "prefill_tokens": prompt_length,
            "prefill_tokens_per_second": round(prompt_length / prefill, 1),
            "decode_tokens_per_second": round(1 / decode, 1),
            "decode_step_microseconds": round(decode * 1e6),
            "weights_read_gb_per_second": round(achieved / 1e9, 2),
            "read_bandwidth_gb_per_second": round(bandwidth / 1e9, 2),
            "share_of_read_bandwidth": round(achieved / bandwidth, 3),
            "memory_bytes": model.memory_report(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="a checkpoint folder instead of the random one")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary)
        if args.model is None:
            write_gpt2(folder)
        results = [measure(folder, dtype, args.threads, args.prompt, args.steps) for dtype in args.dtypes.split(",")]
    machine = {"isa": _C.isa(), "threads": args.threads}
    print(json.dumps({**machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
