"""Cost of the decode loop itself, in microseconds per step: everything in Python and Cython beside the network's step.

    python bench/loop_cost.py [--vocab 50257] [--steps 400]

The runner is a stand-in that hands out ready-made rows of logits, a different buffer each step so that they come from
outer caches as a real step's would. Prints JSON; medians over steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import make_policy
from pyllm.engine.engine import Engine
from pyllm.program.batch import Batch

BUFFERS = 16
PROMPT = list(range(1, 40))


class CountingCache:
    """Reference counts and nothing behind them."""

    def __init__(self) -> None:
        self._references: dict[int, int] = {}
        self._next = 0

    def allocate(self) -> int:
        self._next += 1
        self._references[self._next] = 1
        return self._next

    def share(self, block: int) -> None:
        self._references[block] += 1

    def release(self, block: int) -> None:
        self._references[block] -= 1
        if not self._references[block]:
            del self._references[block]

    def references(self, block: int) -> int:
        return self._references[block]

    def copy(self, block: int) -> int:
        return self.allocate()

    @property
    def blocks_in_use(self) -> int:
        return len(self._references)


class ReadyRunner:
    """Rows of normal deviates, rotated; notes how long `run` itself took, which is not the loop's cost."""

    def __init__(self, vocab_size: int, rows: int, steps: int) -> None:
        self.vocab_size = vocab_size
        self.max_positions = 100_000
        self.inside = 0.0
        noise = np.random.RandomState(0).standard_normal((BUFFERS, rows, vocab_size)) * 3
        self._source = noise.astype(np.float32)
        self._buffers = self._source.copy()
        self._turn = 0

    def new_cache(self) -> CountingCache:
        return CountingCache()

    def run(self, batch: Batch, cache: Any) -> NDArray[np.float32]:
        began = time.perf_counter()
        self._turn = (self._turn + 1) % BUFFERS
        self._buffers[self._turn] = self._source[self._turn]
        rows = self._buffers[self._turn, : len(batch.logit_rows)]
        self.inside += time.perf_counter() - began
        return rows


def microseconds_per_step(vocab_size: int, steps: int, **options: Any) -> float:
    """Median over the steps after the first ten."""
    chosen = GenerationOptions.build({}, {"max_new_tokens": steps, **options})
    runner = ReadyRunner(vocab_size, chosen.num_beams, steps)
    times = []
    with Engine(runner) as engine:
        engine.add(make_policy(PROMPT, chosen, vocab_size=vocab_size))
        while engine.busy:
            runner.inside = 0.0
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began - runner.inside)
    return round(statistics.median(times[10:]) * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {
        "greedy": {},
        "greedy, repetition_penalty": {"repetition_penalty": 1.2},
        "sampling, top_k 50": {"do_sample": True, "top_k": 50},
        "sampling, top_p 0.9": {"do_sample": True, "top_k": 0, "top_p": 0.9},
        "4 beams": {"num_beams": 4},
        "8 beams": {"num_beams": 8},
    }
    costs = {
        name: round(microseconds_per_step(args.vocab, args.steps, **options), 1) for name, options in cases.items()
    }
    print(json.dumps({"vocab_size": args.vocab, "steps": args.steps, "microseconds_per_step": costs}, indent=2))


if __name__ == "__main__":
    main()
