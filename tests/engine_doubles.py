"""Stand-ins for a runner and its cache: logits are a function of the tokens read back through the block tables.

So a wrong block table, a lost copy-on-write or a stale position changes the answer, without any network.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import OutOfMemoryError
from pyllm.program.batch import BLOCK_TOKENS, Batch


class DoubleCache:
    """Blocks hold token ids. `limit`: blocks that may be in use at once."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self.copies = 0
        self.content: dict[int, list[int]] = {}
        self._references: dict[int, int] = {}
        self._next = 0

    def allocate(self) -> int:
        if len(self._references) >= self.limit:
            raise OutOfMemoryError(f"[kv cache] at most {self.limit} blocks, all in use; generate fewer sequences")
        self._next += 1
        self._references[self._next] = 1
        self.content[self._next] = [-1] * BLOCK_TOKENS
        return self._next

    def share(self, block: int) -> None:
        self._references[block] += 1

    def release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            del self._references[block], self.content[block]

    def references(self, block: int) -> int:
        return self._references[block]

    def copy(self, block: int) -> int:
        fresh = self.allocate()
        self.content[fresh] = list(self.content[block])
        self.copies += 1
        return fresh

    @property
    def blocks_in_use(self) -> int:
        return len(self._references)


class DoubleRunner:
    """Logits of a row: pseudo-random numbers seeded by all tokens of its sequence up to that row."""

    def __init__(self, vocab_size: int = 23, max_positions: int = 512, limit: int = 10_000) -> None:
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.caches: list[DoubleCache] = []
        self.batches: list[tuple[int, int]] = []  # (rows, sequences) of every step
        self._limit = limit

    def new_cache(self) -> DoubleCache:
        self.caches.append(DoubleCache(self._limit))
        return self.caches[-1]

    def run(self, batch: Batch, cache: DoubleCache) -> NDArray[np.float32]:
        self.batches.append((len(batch.ids), len(batch.context)))
        histories = []
        for s, context in enumerate(batch.context.tolist()):
            begin, end = int(batch.starts[s]), int(batch.starts[s + 1])
            blocks = batch.block_table[s, : -(-context // BLOCK_TOKENS)].tolist()
            assert batch.positions[begin:end].tolist() == list(range(context - (end - begin), context))
            for row in range(begin, end):
                position = int(batch.positions[row])
                block = blocks[position // BLOCK_TOKENS]
                assert cache.references(block) == 1, "a shared block is written"
                cache.content[block][position % BLOCK_TOKENS] = int(batch.ids[row])
                tokens = [token for b in blocks for token in cache.content[b]][: position + 1]
                assert min(tokens) >= 0, "a token was never written"
                histories.append(tokens)
        assert batch.logit_rows.tolist() == sorted(set(batch.logit_rows.tolist()))
        rows = [self.logits(histories[row]) for row in batch.logit_rows.tolist()]
        return np.stack(rows) if rows else np.zeros((0, self.vocab_size), np.float32)

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """float32 [V]"""
        seed = zlib.crc32(np.array(tokens, np.int32).tobytes())
        return np.random.RandomState(seed).standard_normal(self.vocab_size).astype(np.float32) * 2
