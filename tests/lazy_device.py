"""A stand-in for a device that works off its steps late: nothing runs before somebody waits, and misuse fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from engine_doubles import DoubleCache, DoubleRunner
from numpy.typing import NDArray

from pyllm.decode import _search
from pyllm.errors import OutOfMemoryError
from pyllm.program.batch import BLOCK_TOKENS, CUT, CUT_BY_K, UNCUT, Batch


class LazyCache(DoubleCache):
    """Gives the block that was freed last out again at once, with what was in it, as memory would be."""

    def __init__(self, runner: LazyRunner, limit: int) -> None:
        super().__init__(limit)
        self._freed: list[int] = []
        self._runner = runner

    def allocate(self) -> int:
        if not self._freed or len(self._references) >= self.limit:
            return super().allocate()
        block = self._freed.pop()
        self._references[block] = 1
        return block

    def release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            del self._references[block]
            self._freed.append(block)

    def copy(self, block: int) -> int:
        self._runner.work_off()  # a copy is in the order of the steps
        return super().copy(block)


@dataclass
class Flown:
    """A step that was launched; on the device its rows, and what follows it there."""

    runner: LazyRunner
    batch: Batch
    caches: tuple[LazyCache, LazyCache | None]
    choices: NDArray[Any]
    after: Flown | None
    tokens: NDArray[np.int32] | None = None
    waited: bool = False

    def wait(self) -> NDArray[np.int32]:
        self.runner.work_off()
        self.waited = True
        assert self.tokens is not None
        return self.tokens


@dataclass
class LazyRunner(DoubleRunner):
    """Logits are those of a DoubleRunner; of an encoder-decoder, with the source's tokens before the text's."""

    vocab_size: int = 23
    max_positions: int = 512
    limit: int = 10_000
    rows_ahead: int = 128
    refuse: set[int] = field(default_factory=set)  # launches, by number, for which memory lacks
    launched: int = 0
    followed: int = 0  # of them, by steps before whose tokens were read

    def __post_init__(self) -> None:
        super().__init__(self.vocab_size, self.max_positions, self.limit)
        self._queue: list[Flown] = []
        self._last: Flown | None = None  # the state of the device is what follows it

    def new_cache(self) -> LazyCache:
        self.caches.append(LazyCache(self, self._limit))
        return self.caches[-1]  # type: ignore[return-value]

    def run(self, batch: Batch, cache: Any, *, cross: Any = None) -> NDArray[np.float32]:
        self.work_off()
        self._last = None
        self._check(batch, cache)
        rows = self._rows(batch, (cache, cross))
        wanted = [rows[row] for row in batch.logit_rows.tolist()]
        return np.stack(wanted) if wanted else np.zeros((0, self.vocab_size), np.float32)

    def run_ahead(
        self, batch: Batch, cache: Any, choices: Any, cuts: int = CUT, *, cross: Any = None, after: Any = None
    ) -> Flown:
        rows = len(batch.ids)
        assert 0 < rows <= self.rows_ahead
        assert batch.starts.tolist() == list(range(rows + 1))
        assert batch.logit_rows.tolist() == list(range(rows))
        assert len(choices) == rows
        assert cuts >= _cuts_needed(choices, self.vocab_size)
        self._check(batch, cache)
        if after is not None:
            assert self._last is after, "only the step before says what follows"
            assert not after.waited
            assert after.after is None or after.after.waited, "two steps ahead"
            assert len(after.batch.ids) == rows
            self.followed += 1
        self.launched += 1
        if self.launched in self.refuse:
            raise OutOfMemoryError("[double] a device is full")
        copied = replace(batch, **{name: value.copy() for name, value in vars(batch).items() if value is not None})
        flown = Flown(self, copied, (cache, cross), choices.copy(), after)
        if after is not None:
            copied.ids[:] = -1000
        self._queue.append(flown)
        self._last = flown
        return flown

    def work_off(self) -> None:
        """Runs what was launched, in order."""
        while self._queue:
            one = self._queue.pop(0)
            if one.after is not None:
                before = one.after
                assert before.tokens is not None
                assert (one.batch.positions == before.batch.positions + 1).all()
                assert (one.batch.context == before.batch.context + 1).all()
                assert (one.choices["step"] == before.choices["step"] + 1).all()
                names = [name for name in one.choices.dtype.names or () if name != "step"]
                assert (one.choices[names] == before.choices[names]).all()
                one.batch.ids[:] = np.maximum(before.tokens, 0)
            rows = self._rows(one.batch, one.caches)
            pairs = zip(rows, one.choices, strict=True)
            one.tokens = np.array([_chosen(row, choice) for row, choice in pairs], np.int32)

    def _check(self, batch: Batch, cache: LazyCache) -> None:
        """What must be so when a step is launched; its blocks may change hands before it runs."""
        for s, context in enumerate(batch.context.tolist()):
            begin, end = batch.starts[s : s + 2].tolist()
            assert batch.positions[begin:end].tolist() == list(range(context - (end - begin), context))
            assert context <= self.max_positions
            blocks = batch.block_table[s, : -(-context // BLOCK_TOKENS)].tolist()
            assert all(cache.references(block) for block in blocks)
            written = {blocks[position // BLOCK_TOKENS] for position in batch.positions[begin:end].tolist()}
            assert all(cache.references(block) == 1 for block in written), "a shared block is written"

    def _rows(self, batch: Batch, caches: tuple[LazyCache, LazyCache | None]) -> list[NDArray[np.float32]]:
        cache, cross = caches
        self.batches.append((len(batch.ids), len(batch.context)))
        rows = []
        for s, context in enumerate(batch.context.tolist()):
            source: list[int] = []
            if batch.cross_table is not None and batch.cross_context is not None:
                assert cross is not None
                source = [token for b in batch.cross_table[s].tolist() for token in cross.content.get(b, [])]
                source = source[: batch.cross_context[s]]
            blocks = batch.block_table[s, : -(-context // BLOCK_TOKENS)].tolist()
            for row in range(*batch.starts[s : s + 2].tolist()):
                position = int(batch.positions[row])
                cache.content[blocks[position // BLOCK_TOKENS]][position % BLOCK_TOKENS] = int(batch.ids[row])
                tokens = [token for b in blocks for token in cache.content[b]][: position + 1]
                rows.append(self.logits([*source, *tokens]))
        return rows


def _cuts_needed(choices: Any, width: int) -> int:
    drawn = choices[choices["temperature"] > 0]
    by_k = (drawn["top_k"] > 0) & (drawn["top_k"] < width)
    if ((drawn["top_p"] < 1) & ~by_k).any():
        return CUT
    return CUT_BY_K if (by_k | (drawn["min_p"] > 0)).any() else UNCUT


def _chosen(row: NDArray[np.float32], choice: Any) -> int:
    if choice["temperature"] == 0:
        return _search.best_token(row[None])
    at = (int(choice[name]) for name in ("seed", "seed_index", "sequence", "step"))
    cuts = float(choice["temperature"]), int(choice["top_k"]), float(choice["top_p"]), float(choice["min_p"])
    return _search.sample(row[None], *cuts, [_search.uniform(*at)])[0]
