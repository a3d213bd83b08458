"""Whole models on a GPU, with random weights of the real shapes: decode, batches and prefill, as JSON lines.

    python bench/cuda_models.py [--only REGEX] [--steps 128] [--copy GB/s] [--gemm TFLOP/s]

Each model is checked first: a two-layer one of the same widths must give the CPU's logits. Decode: tokens a second of
the steady greedy steps through pyllm's own loop, what a user gets. `floor`: the time that weights (and keys and values)
take at the copy bandwidth, `of_floor` what share of the measured time that is; prefill: TFLOP/s, and the share of the
GEMM peak.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from typing import Any

import numpy as np
from cuda_random import MODELS, random_model
from families import WARM_UP, bytes_read

from pyllm.decode.options import GenerationOptions
from pyllm.program.program import Attention, Linear

BITS = {None: 16.0, "int8": 8.0, "int4": 4.5, "int4-g128": 4.125}
# (model, quantization, sequences, prompt tokens, target: tokens a second)
DECODE: list[tuple[str, str | None, int, int, float | None]] = [
    ("gpt2-124m", None, 1, 32, 4000),
    ("qwen2.5-0.5b", None, 1, 32, 1700),
    ("qwen2.5-0.5b", "int4", 1, 32, None),
    ("llama3-8b", None, 1, 32, 250),
    ("llama3-8b", "int8", 1, 32, 450),
    ("llama3-8b", "int4", 1, 32, 760),
    ("llama3-8b", None, 64, 512, 11400),
]
PREFILL = [("llama3-8b", 2048, 0.75), ("qwen2.5-0.5b", 2048, None), ("gpt2-124m", 1000, None)]


def check(name: str, quantization: str | None) -> float:
    """||cuda - cpu|| / ||cpu|| of the logits of a prompt, two layers. Both round products' inputs to bfloat16, so 3e-2
    is far more than they may differ, and far less than any mistake makes."""
    layers = {key: 2 for key in ("num_hidden_layers", "n_layer") if key in MODELS[name]}
    ids = np.random.RandomState(3).randint(3, 1000, size=70).tolist()
    found = []
    for device in ("cpu", "cuda"):
        with random_model({**MODELS[name], **layers}, device, dtype="bfloat16", quantization=quantization) as model:
            found.append(np.asarray(model.logits(ids), np.float64))
    error = float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]))
    if not error < 3e-2:
        raise SystemExit(f"{name} {quantization}: logits differ from the CPU's by {error:.3g}")
    return error


def decode(model: Any, sequences: int, prompt: int, steps: int) -> float:
    """Median seconds of a step in which every sequence grows by a token."""
    options = GenerationOptions.build({}, {"max_new_tokens": steps + WARM_UP, "eos_token_id": None})
    random = np.random.RandomState(1)
    prompts = [random.randint(3, model.program.vocab_size, size=prompt).tolist() for _ in range(sequences)]
    times = []
    with model._session() as engine:
        for policy in model._policies(prompts, options):
            engine.add(policy)
        while engine.busy:
            began = time.perf_counter()
            advanced = engine.step()
            if len(advanced) == sequences:
                times.append(time.perf_counter() - began)
    return statistics.median(times[1 + WARM_UP :])


def prefill(model: Any, tokens: int) -> float:
    """Median seconds from a prompt to its first token."""
    options = GenerationOptions.build({}, {"max_new_tokens": 1, "eos_token_id": None})
    times = []
    for seed in range(7):
        ids = np.random.RandomState(seed).randint(3, model.program.vocab_size, size=tokens).tolist()
        with model._session() as engine:
            engine.add(model._policies([ids], options)[0])
            began = time.perf_counter()
            while engine.busy:
                engine.step()
            times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def flops(program: Any, tokens: int) -> float:
    """Of a prompt: two for each weight and token (the head once), and causal attention."""
    total = 0.0
    for op in program.ops:
        if isinstance(op, Linear):
            total += 2 * op.weight.shape[0] * op.weight.shape[1] * (1 if op.out.rows == "R" else tokens)
        elif isinstance(op, Attention):
            total += 2 * op.num_heads * op.head_dim * tokens * tokens
    return total


def kv_bytes(program: Any, tokens: float) -> float:
    return 2 * 2 * program.num_layers * program.num_kv_heads * program.head_dim * tokens


def decode_case(model: Any, case: tuple[str, str | None, int, int, float | None], args: Any) -> dict[str, Any]:
    name, quantization, sequences, prompt, target = case
    seconds = decode(model, sequences, prompt, args.steps)
    read = bytes_read(model.program, "bfloat16") * BITS[quantization] / 16
    read += sequences * kv_bytes(model.program, prompt + args.steps / 2)
    label = f"{name} {quantization or 'bf16'} decode, {sequences} x context {prompt}"
    found = {"case": label, "tokens_per_second": round(sequences / seconds, 1), "target": target}
    if args.copy:
        found["of_floor"] = round(read / (args.copy * 1e9) / seconds, 3)
    return found


def prefill_case(model: Any, name: str, tokens: int, target: float | None, args: Any) -> dict[str, Any]:
    seconds = prefill(model, tokens)
    rate = flops(model.program, tokens) / seconds / 1e12
    found: dict[str, Any] = {"case": f"{name} bf16 prefill {tokens}", "ms": round(seconds * 1e3, 2)}
    found |= {"tflops": round(rate, 1), "target_of_gemm": target}
    if args.gemm:
        found["of_gemm"] = round(rate / args.gemm, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: models (with their quantisation) to run")
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--copy", type=float, help="copy bandwidth of this card in GB/s (cuda_ceilings.py)")
    parser.add_argument("--gemm", type=float, help="bfloat16 GEMM rate of this card in TFLOP/s (cuda_ceilings.py)")
    args = parser.parse_args()
    for name, quantization in dict.fromkeys((case[0], case[1]) for case in DECODE):
        if not re.search(args.only, f"{name} {quantization or 'bf16'}"):
            continue
        error = check(name, quantization)
        with random_model(MODELS[name], "cuda", dtype="bfloat16", quantization=quantization) as model:
            for case in DECODE:
                if case[:2] == (name, quantization):
                    print(json.dumps({**decode_case(model, case, args), "error": round(error, 5)}), flush=True)
            for prompt_name, tokens, target in PREFILL:
                if prompt_name == name and quantization is None:
                    print(json.dumps(prefill_case(model, name, tokens, target, args)), flush=True)


if __name__ == "__main__":
    main()
