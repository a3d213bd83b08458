"""transformers on the same card and shapes: eager, and torch.compile over a static cache (CUDA graphs).

    python bench/cuda_peers.py [--only REGEX] [--tokens 96]

Greedy decode of one sequence: the time of a long text less that of a short one, so prompt and compilation are left out.
JSON lines; a case that fails says why.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

from cuda_random import MODELS

SHORT = 8


def tokens_per_second(model: Any, tokens: int, **options: Any) -> float:
    """Of the best of three pairs of runs."""
    import torch

    ids = torch.randint(3, 1000, (1, 32), device="cuda")
    fixed: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}

    def timed(count: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **fixed)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(2):  # compiles, and captures graphs
        timed(SHORT)
        timed(tokens)
    return (tokens - SHORT) / min(timed(tokens) - timed(SHORT) for _ in range(3))


def build(name: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in MODELS[name].items() if key != "architectures"}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: models to run")
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    print(json.dumps({"case": "versions", "torch": torch.__version__, "transformers": transformers.__version__}))
    for name in sorted(MODELS, key=lambda each: each == "llama3-8b"):
        if not re.search(args.only, name):
            continue
        model = build(name)
        for label, options in (("eager", {}), ("compiled, static cache", {"cache_implementation": "static"})):
            found: dict[str, Any] = {"case": f"{name} bf16 decode, 1 x context 32", "engine": f"transformers {label}"}
            try:
                with torch.inference_mode():
                    found["tokens_per_second"] = round(tokens_per_second(model, args.tokens, **options), 1)
            except Exception as error:  # a peer's failure is a result
                found["failed"] = f"{type(error).__name__}: {error}"[:300]
            print(json.dumps(found), flush=True)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
