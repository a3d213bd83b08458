"""Cost of the decode loop itself, in microseconds per step: everything in Python and Cython beside the network's step.

    python bench/loop_cost.py [--vocab 50257] [--steps 400] [--only "32 prompts"]

The runner is a stand-in that hands out ready-made rows of logits, a different buffer each step so that they come from
outer caches as a real step's would; for "a device chooses" one that hands out tokens, at once or a step later ("ahead":
then this is time in which a device works, not waits). Prints JSON: median and least over the steps, of this thread's
processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import make_policy
from pyllm.engine.engine import Engine
from pyllm.program.batch import SUMMARY_COLUMNS, Batch, Summary

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
    """Rows of normal deviates, rotated, and their summaries as a device's threads would have made them; notes how long
    `run` itself took, which is not the loop's cost. `peak`: what is added to one logit of each row."""

    def __init__(self, vocab_size: int, rows: int, scale: float, peak: float, summarise: bool) -> None:
        self.vocab_size = vocab_size
        self.max_positions = 100_000
        self.inside = 0.0
        buffers = max(4, BUFFERS // rows)
        noise = np.random.RandomState(0).standard_normal((buffers, rows, vocab_size)) * 3
        noise[:, :, vocab_size // 3] += peak
        self._source = noise.astype(np.float32)
        self._buffers = self._source.copy()
        self._summaries = [summary_of(each, scale) for each in self._source] if summarise else None
        self._turn = 0
        if not summarise:
            self.run = self.run_without_summary  # type: ignore[method-assign]

    def new_cache(self) -> CountingCache:
        return CountingCache()

    def run(self, batch: Batch, cache: Any, summary: Summary | None = None) -> NDArray[np.float32]:
        began = time.thread_time()
        self._turn = (self._turn + 1) % len(self._buffers)
        self._buffers[self._turn] = self._source[self._turn]
        rows = self._buffers[self._turn, : len(batch.logit_rows)]
        if summary is not None and self._summaries is not None:
            summary.blocks = self._summaries[self._turn][: len(rows)]
        self.inside += time.thread_time() - began
        return rows

    def run_without_summary(self, batch: Batch, cache: Any) -> NDArray[np.float32]:
        return ReadyRunner.run(self, batch, cache)


class ChoosingRunner:
    """Stands in for a device that chooses by itself: everything is there at once."""

    def __init__(self, vocab_size: int, rows: int) -> None:
        self.vocab_size = vocab_size
        self.max_positions = 100_000
        self.inside = 0.0
        self._tokens = np.full(rows, vocab_size // 3, np.int32)

    def new_cache(self) -> CountingCache:
        return CountingCache()

    def run(self, batch: Batch, cache: Any) -> NDArray[np.int32]:
        return self._tokens[: len(batch.logit_rows)]

    def device_rows(self, output: NDArray[np.int32]) -> ChosenRows:
        return ChosenRows(output, self.vocab_size)


class ChosenRows:
    """What such a device has chosen of rows of logits."""

    can_choose = True

    def __init__(self, tokens: NDArray[np.int32], vocab_size: int) -> None:
        self._tokens = tokens
        self.shape = len(tokens), vocab_size

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, rows: slice) -> ChosenRows:
        return ChosenRows(self._tokens[rows], self.shape[1])

    def choose(self, choices: Any, cuts: int = 0) -> NDArray[np.int32]:
        return self._tokens if len(choices) == len(self) else np.repeat(self._tokens, len(choices))

    def wait(self) -> NDArray[np.int32]:
        return self._tokens


class AheadRunner(ChoosingRunner):
    """One that can take a step before its tokens are known."""

    rows_ahead = 128

    def run_ahead(self, batch: Batch, cache: Any, choices: Any, cuts: int = 0, **rest: Any) -> ChosenRows:
        return ChosenRows(self._tokens[: len(batch.ids)], self.vocab_size)


def summary_of(logits: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Summary.blocks of logits [R, V]."""
    width = -(-logits.shape[1] // SUMMARY_COLUMNS) * SUMMARY_COLUMNS
    padded = np.full((len(logits), width), -np.inf, np.float32)
    padded[:, : logits.shape[1]] = logits
    blocks = padded.reshape(len(logits), -1, SUMMARY_COLUMNS)
    highest = blocks.max(axis=2)
    return np.stack([highest, np.exp((blocks - highest[:, :, None]) * np.float32(scale)).sum(axis=2)], axis=2)


def microseconds_per_step(
    vocab_size: int, steps: int, prompts: int, make_runner: Callable[[int, float], Any], **options: Any
) -> tuple[float, float]:
    """(median, least) over the steps after the first ten. make_runner: of rows, and the scale of summaries."""
    chosen = GenerationOptions.build({}, {"max_new_tokens": steps, "seed": 1, **options})
    rows = prompts * max(chosen.num_beams, chosen.num_return_sequences)
    runner = make_runner(rows, 1 / chosen.temperature)
    times = []
    with Engine(runner) as engine:
        for index in range(prompts):
            engine.add(make_policy(PROMPT, chosen, vocab_size=vocab_size, seed_index=index))
        while engine.busy:
            runner.inside = 0.0
            began = time.thread_time()
            engine.step()
            times.append(time.thread_time() - began - runner.inside)
    return round(statistics.median(times[10:]) * 1e6, 1), round(min(times[10:]) * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--peak", type=float, default=8.0, help="added to one logit of each row of deviation 3")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    sampling: dict[str, dict[str, Any]] = {
        "top_k 50": {"do_sample": True, "top_k": 50},
        "temperature 0.8": {"do_sample": True, "temperature": 0.8, "top_k": 0},
        "temperature 0.8, top_k 50, top_p 0.9": {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9},
        "top_p 0.9": {"do_sample": True, "top_k": 0, "top_p": 0.9},
    }
    cases: dict[str, dict[str, Any]] = {
        "greedy": {},
        "greedy, repetition_penalty": {"repetition_penalty": 1.2},
        **{f"sampling, {name}": options for name, options in sampling.items()},
        "4 beams": {"num_beams": 4},
        "8 beams": {"num_beams": 8},
        "32 prompts, greedy": {"prompts": 32},
        "64 prompts, greedy": {"prompts": 64},
        **{f"32 prompts, {name}": {"prompts": 32, **options} for name, options in sampling.items()},
        "1 prompt, 32 samples, top_k 50": {"num_return_sequences": 32, **sampling["top_k 50"]},
    }
    costs: dict[str, Any] = {}
    for name, options in cases.items():
        if args.only not in name:
            continue
        kinds: dict[str, Callable[[int, float], Any]] = {
            "with summary": lambda rows, scale: ReadyRunner(args.vocab, rows, scale, args.peak, True),
            "without": lambda rows, scale: ReadyRunner(args.vocab, rows, scale, args.peak, False),
        }
        if "beams" not in name and "penalty" not in name:
            kinds["a device chooses"] = lambda rows, scale: ChoosingRunner(args.vocab, rows)
            kinds["ahead"] = lambda rows, scale: AheadRunner(args.vocab, rows)
        costs[name] = {
            kind: microseconds_per_step(args.vocab, args.steps, make_runner=make, **{"prompts": 1, **options})
            for kind, make in kinds.items()
        }
        print(f"{name:45} {costs[name]}", file=sys.stderr, flush=True)
    print(json.dumps({"vocab_size": args.vocab, "steps": args.steps, "microseconds_per_step": costs}, indent=2))


if __name__ == "__main__":
    main()
