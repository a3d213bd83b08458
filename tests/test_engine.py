"""The decode loop on a stand-in runner: what every policy is given, and that no block is ever lost."""

from __future__ import annotations

import random

import numpy as np
import pytest
from engine_doubles import DoubleCache, DoubleRunner
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Hypothesis, Policy, Request, Track
from pyllm.decode.steps import Advance
from pyllm.engine.engine import Engine
from pyllm.engine.sequences import SequenceTable
from pyllm.errors import OutOfMemoryError


class Wanderer(Policy):
    """Forks, drops and reorders at random (but reproducibly), and checks every row of logits it is given."""

    def __init__(self, runner: DoubleRunner, prompt: list[int], steps: int, width: int, seed: int) -> None:
        super().__init__(Request(prompt, GenerationOptions(), runner.vocab_size, 10_000, seed))
        self.runner, self.steps, self.width = runner, steps, width
        self.random = random.Random(seed)
        self.seen: list[NDArray[np.float32]] = []

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        for i, row in enumerate(logits):
            assert np.array_equal(row, self.runner.logits(self.live_tokens(i)))
        self.seen.append(logits.copy())
        logits[:] = np.nan  # a policy may overwrite them
        self.steps -= 1
        if self.steps == 0:
            self.finished = True
            return Advance([], [])
        count = self.random.randint(1, self.width)
        parents = [self.random.randrange(len(self._live)) for _ in range(count)]
        tokens = [self.random.randrange(self.runner.vocab_size) for _ in range(count)]
        self._live = [Track([*self.live_tokens(p), t]) for p, t in zip(parents, tokens, strict=True)]
        return Advance(parents, tokens)

    def _stop(self, reason: str) -> None: ...

    def results(self) -> list[Hypothesis]:
        return [self._hypothesis(track, None, "length", None) for track in self._live]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(23), k=length)


def drive(engine: Engine, *policies: Policy) -> None:
    for policy in policies:
        engine.add(policy)
    while engine.busy:
        engine.step()


# Prompts around the block size; a width of 1 never forks, 6 forks and drops in every step.
WALKS = [(1, 70, 1), (31, 40, 4), (32, 40, 6), (33, 3, 2), (100, 75, 6), (65, 1, 3)]


def wanderers(runner: DoubleRunner) -> list[Wanderer]:
    return [Wanderer(runner, prompt_of(n), steps, width, seed=n) for n, steps, width in WALKS]


def test_rows_belong_to_their_sequences_and_no_block_is_left() -> None:
    runner = DoubleRunner()
    with Engine(runner, rows_per_step=48) as engine:
        drive(engine, *wanderers(runner))
        assert engine.cache.blocks_in_use == 0


@pytest.mark.parametrize("rows_per_step", [1, 33])
def test_company_and_chunks_change_nothing(rows_per_step: int) -> None:
    runner = DoubleRunner()
    together = wanderers(runner)
    drive(Engine(runner, rows_per_step=rows_per_step), *together)
    for alone, other in zip(wanderers(runner), together, strict=True):
        drive(Engine(runner), alone)
        assert alone.results() == other.results()
        assert all(np.array_equal(a, b) for a, b in zip(alone.seen, other.seen, strict=True))


def test_prompts_go_in_chunks_beside_decoding_groups() -> None:
    runner = DoubleRunner()
    with Engine(runner, rows_per_step=16) as engine:
        engine.add(Wanderer(runner, prompt_of(3), 30, 1, seed=1))
        engine.step()
        engine.add(Wanderer(runner, prompt_of(90), 5, 1, seed=2))
        drive(engine)
    assert runner.batches[0] == (3, 1)
    assert runner.batches[1:7] == [(16, 2)] * 6  # one decoding row, then 15 rows of the prompt
    assert max(rows for rows, _ in runner.batches) == 16


def test_a_group_may_join_and_be_dropped_between_steps() -> None:
    runner = DoubleRunner()
    with Engine(runner) as engine:
        first = engine.add(Wanderer(runner, prompt_of(40), 60, 3, seed=3))
        for _ in range(20):
            engine.step()
        engine.add(Wanderer(runner, prompt_of(33), 40, 4, seed=4))
        for _ in range(20):
            engine.step()
        engine.drop(first)
        drive(engine)
        assert engine.cache.blocks_in_use == 0
        assert engine.step() == []


class Failing(Wanderer):
    """Raises `error` at its third step."""

    error: BaseException = KeyboardInterrupt()

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        if self.steps == 37:
            raise self.error
        return super()._advance(logits)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a logits processor's own")])
def test_an_exception_leaves_no_block(error: BaseException) -> None:
    runner = DoubleRunner()
    failing = Failing(runner, prompt_of(50), 40, 5, seed=5)
    failing.error = error
    with pytest.raises(type(error)), Engine(runner) as engine:
        drive(engine, *wanderers(runner), failing)
    assert runner.caches[0].blocks_in_use == 0


def test_out_of_memory_at_any_block_leaves_none() -> None:
    for limit in range(1, 24):
        runner = DoubleRunner(limit=limit)
        with pytest.raises(OutOfMemoryError), Engine(runner) as engine:
            drive(engine, *wanderers(runner))
        assert runner.caches[0].blocks_in_use == 0


def test_score_equals_one_row_at_a_time() -> None:
    runner = DoubleRunner()
    ids = prompt_of(300)
    with Engine(runner) as engine:
        logits = engine.score(ids)
        assert engine.cache.blocks_in_use == 0
    expected = np.stack([runner.logits(ids[: n + 1]) for n in range(len(ids))])
    assert logits.dtype == np.float32
    assert np.array_equal(logits, expected)


def test_forks_share_full_blocks_and_copy_only_the_last() -> None:
    cache = DoubleCache()
    table = SequenceTable(cache)
    slot = table.open()
    table.extend(slot, 70)  # two full blocks and 6 tokens
    slots = table.reorder([slot], [0, 0, 0, 0])
    assert slots[0] == slot
    assert cache.blocks_in_use == 3
    assert cache.copies == 0
    assert table.append(slots)
    assert cache.blocks_in_use == 2 + 4
    assert cache.copies == 3
    assert not table.append(slots)
    blocks = [table.blocks(s) for s in slots]
    assert all(b[:2] == blocks[0][:2] for b in blocks)
    assert len({b[2] for b in blocks}) == 4

    again = table.reorder(slots, [2, 2, 2, 1])  # 0 and 3 die; two twins of 2 take over their slots
    assert again[0] == slots[2]
    assert again[3] == slots[1]
    assert {again[1], again[2]} == {slots[0], slots[3]}
    assert cache.blocks_in_use == 2 + 2
    table.clear()
    assert cache.blocks_in_use == 0


def test_children_of_full_blocks_copy_nothing() -> None:
    cache = DoubleCache()
    table = SequenceTable(cache)
    slot = table.open()
    table.extend(slot, 64)
    slots = table.reorder([slot], [0, 0])
    table.append(slots)
    assert cache.copies == 0
    assert cache.blocks_in_use == 4
