"""Runs an encoder-decoder through a Runner by hand: sources in one ragged step, then targets in chosen chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pyllm.program.batch import BLOCK_TOKENS, Batch, Capture, KvCache, Runner, on_host


class Translator:
    """Sequences by name, each with a source; `step` feeds some targets and returns the outputs of every fed token."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.cache = runner.new_cache()
        self.cross = runner.new_cross_cache()
        self.lengths: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.sources: dict[str, tuple[int, list[int]]] = {}  # tokens, blocks of the cross cache

    def encode(self, sources: Mapping[str, Sequence[int]], capture: Capture | None = None) -> dict[str, np.ndarray]:
        """sources: name -> ids; returns name -> the encoder's last hidden state, float32 [S, D]."""
        own = self.runner.new_cache("encode")
        lengths = [len(ids) for ids in sources.values()]
        starts = np.cumsum([0, *lengths]).astype(np.int32)
        for name, ids in sources.items():
            self.sources[name] = (len(ids), _blocks(self.cross, len(ids)))
        batch = Batch(
            ids=np.concatenate([np.asarray(ids, np.int32) for ids in sources.values()]),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            starts=starts,
            context=np.array(lengths, np.int32),
            block_table=_table([_blocks(own, n) for n in lengths]),
            logit_rows=np.arange(starts[-1], dtype=np.int32),
            cross_table=_table([self.sources[name][1] for name in sources]),
            cross_context=np.array(lengths, np.int32),
        )
        output = self.runner.run(batch, own, program="encode", cross=self.cross, capture=capture)
        out = np.array(on_host(self.runner, output))
        return {name: out[starts[i] : starts[i + 1]] for i, name in enumerate(sources)}

    def step(self, chunks: Mapping[str, Sequence[int]], capture: Capture | None = None) -> dict[str, np.ndarray]:
        """chunks: name -> the next ids of that target; returns name -> float32 [len(chunk), n]."""
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks.values())]).astype(np.int32)
        positions = []
        for name, chunk in chunks.items():
            first = self.lengths.get(name, 0)
            self.lengths[name] = first + len(chunk)
            positions += range(first, first + len(chunk))
            blocks = self.blocks.setdefault(name, [])
            blocks += _blocks(self.cache, self.lengths[name], len(blocks))
        batch = Batch(
            ids=np.concatenate([np.asarray(chunk, np.int32) for chunk in chunks.values()]),
            positions=np.array(positions, np.int32),
            starts=starts,
            context=np.array([self.lengths[name] for name in chunks], np.int32),
            block_table=_table([self.blocks[name] for name in chunks]),
            logit_rows=np.arange(starts[-1], dtype=np.int32),
            cross_table=_table([self.sources[name][1] for name in chunks]),
            cross_context=np.array([self.sources[name][0] for name in chunks], np.int32),
        )
        out = np.array(on_host(self.runner, self.runner.run(batch, self.cache, cross=self.cross, capture=capture)))
        return {name: out[starts[i] : starts[i + 1]] for i, name in enumerate(chunks)}


def _blocks(cache: KvCache, tokens: int, have: int = 0) -> list[int]:
    return [cache.allocate() for _ in range(have, -(-tokens // BLOCK_TOKENS))]


def _table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, blocks in zip(table, rows, strict=True):
        row[: len(blocks)] = blocks
    return table


def outputs_of(runner: Runner, source: Sequence[int], target: Sequence[int], chunk: int = 1 << 30) -> np.ndarray:
    """float32 [T, n] of one target given its source, fed `chunk` tokens at a time."""
    translator = Translator(runner)
    translator.encode({"one": source})
    return np.concatenate(
        [translator.step({"one": target[i : i + chunk]})["one"] for i in range(0, len(target), chunk)]
    )
