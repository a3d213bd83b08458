"""Runs sequences through a Runner by hand: batches of chosen chunks, blocks allocated as positions come. No search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pyllm.program.batch import BLOCK_TOKENS, Batch, Runner, on_host


class Stepper:
    """Sequences by name over one cache; `step` feeds some of them and returns the logits of every fed token."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.cache = runner.new_cache()
        self.lengths: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}

    def step(self, chunks: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """chunks: name -> the next ids of that sequence; returns name -> float32 [len(chunk), V]."""
        batch = self.batch(chunks)
        logits = np.array(on_host(self.runner, self.runner.run(batch, self.cache)))
        return {name: logits[batch.starts[i] : batch.starts[i + 1]] for i, name in enumerate(chunks)}

    def batch(self, chunks: Mapping[str, Sequence[int]]) -> Batch:
        """The same step, for the caller to run."""
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks.values())])
        positions = []
        for name, chunk in chunks.items():
            first = self.lengths.get(name, 0)
            self.lengths[name] = first + len(chunk)
            positions += range(first, first + len(chunk))
            blocks = self.blocks.setdefault(name, [])
            while len(blocks) * BLOCK_TOKENS < self.lengths[name]:
                blocks.append(self.cache.allocate())
        width = max(len(self.blocks[name]) for name in chunks)
        table = np.zeros((len(chunks), width), np.int32)
        for row, name in enumerate(chunks):
            table[row, : len(self.blocks[name])] = self.blocks[name]
        return Batch(
            ids=np.concatenate([np.asarray(chunk, np.int32) for chunk in chunks.values()]),
            positions=np.array(positions, np.int32),
            starts=starts.astype(np.int32),
            context=np.array([self.lengths[name] for name in chunks], np.int32),
            block_table=table,
            logit_rows=np.arange(len(positions), dtype=np.int32),
        )


def logits_of(runner: Runner, ids: Sequence[int], chunk: int = 1 << 30) -> np.ndarray:
    """float32 [T, V] of one sequence, fed `chunk` tokens at a time."""
    stepper = Stepper(runner)
    return np.concatenate([stepper.step({"one": ids[i : i + chunk]})["one"] for i in range(0, len(ids), chunk)])


def greedy(runner: Runner, prompt: Sequence[int], count: int) -> list[int]:
    """`count` new tokens, or fewer when the positions end."""
    stepper = Stepper(runner)
    chunk, found = list(prompt), []
    while len(found) < count and stepper.lengths.get("one", 0) + len(chunk) <= runner.max_positions:
        chunk = [int(stepper.step({"one": chunk})["one"][-1].argmax())]
        found += chunk
    return found
