"""KV blocks of live sequences: growing, forking by sharing, copying a shared last block before it is written.

Knows of blocks and lengths only; which token stands where is the engine's business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..program.batch import BLOCK_TOKENS, KvCache


class SequenceTable:
    """Block lists by slot (a small integer that names one live sequence), mirrored in `table` for the runner.

    table     int32 [slots, width], block ids of the slot's sequence; entries past its blocks are meaningless
    lengths   tokens per slot whose keys and values the cache holds, or will once the batch being built has run

    Two sequences with a common ancestor share a prefix of their block lists, and nothing after the first difference:
    a shared block that is not full is copied before anyone writes to it.
    """

    def __init__(self, cache: KvCache, slots: int = 4, width: int = 4) -> None:
        self.table: NDArray[np.int32] = np.zeros((slots, width), np.int32)
        self.lengths: list[int] = [0] * slots
        self._cache = cache
        self._blocks: list[list[int]] = [[] for _ in range(slots)]
        self._forked: list[bool] = [False] * slots  # the last block may be shared and partly filled
        self._free: list[int] = list(range(slots))[::-1]

    def open(self) -> int:
        """The slot of a new, empty sequence."""
        if not self._free:
            slots = len(self.lengths)
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
            self.lengths += [0] * slots
            self._blocks += [[] for _ in range(slots)]
            self._forked += [False] * slots
            self._free = list(range(slots, 2 * slots))[::-1]
        return self._free.pop()

    def close(self, slot: int) -> None:
        """Ends a sequence; its blocks lose one reference each."""
        blocks = self._blocks[slot]
        while blocks:
            self._cache.release(blocks.pop())
        self.lengths[slot] = 0
        self._forked[slot] = False
        self._free.append(slot)

    def clear(self) -> None:
        """Ends every sequence."""
        for slot in set(range(len(self.lengths))) - set(self._free):
            self.close(slot)

    def append(self, slots: list[int]) -> bool:
        """Room for one more token in each sequence. True when a block list changed."""
        changed = False
        for slot in slots:
            length = self.lengths[slot]
            if length % BLOCK_TOKENS == 0 or self._forked[slot]:
                self.extend(slot, 1)
                changed = True
            else:
                self.lengths[slot] = length + 1
        return changed

    def extend(self, slot: int, tokens: int) -> None:
        """Room for `tokens` more in one sequence. Raises OutOfMemoryError, and the sequence is then as it was or longer
        by some blocks: it can be closed, nothing is lost."""
        blocks, length = self._blocks[slot], self.lengths[slot]
        if self._forked[slot]:
            self._own_last_block(slot)
        needed = -(-(length + tokens) // BLOCK_TOKENS)
        if needed > self.table.shape[1]:
            wider = np.zeros((self.table.shape[0], max(needed, 2 * self.table.shape[1])), np.int32)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        while len(blocks) < needed:
            blocks.append(self._cache.allocate())
            self.table[slot, len(blocks) - 1] = blocks[-1]
        self.lengths[slot] = length + tokens

    def shorten(self, slot: int, tokens: int) -> None:
        """Takes back the last `tokens` of what the sequence was extended by since it was last forked."""
        length, blocks = self.lengths[slot] - tokens, self._blocks[slot]
        while len(blocks) * BLOCK_TOKENS - BLOCK_TOKENS >= length:
            self._cache.release(blocks.pop())
        self.lengths[slot] = length

    def reorder(self, slots: list[int], parents: list[int]) -> list[int]:
        """Slots of the children when child i continues the sequence in slots[parents[i]].

        One child of each parent keeps its slot; further ones take over slots of sequences without children, whose
        blocks past the common prefix are released; slots left over are closed.
        """
        children = [-1] * len(parents)
        kept: set[int] = set()
        forks: list[int] = []
        for child, parent in enumerate(parents):
            slot = slots[parent]
            if slot in kept:
                forks.append(child)
            else:
                kept.add(slot)
                children[child] = slot
        ended = [slot for slot in slots if slot not in kept]
        for child in forks:
            children[child] = ended.pop() if ended else self.open()
            self._share(slots[parents[child]], children[child])
        for slot in ended:
            self.close(slot)
        return children

    def blocks(self, slot: int) -> list[int]:
        """A copy of the slot's block list."""
        return list(self._blocks[slot])

    def _share(self, source: int, target: int) -> None:
        """Makes `target` a twin of `source`. Only blocks after the last common one change hands."""
        mine, theirs = self._blocks[target], self._blocks[source]
        common = min(len(mine), len(theirs))
        while common and mine[common - 1] != theirs[common - 1]:
            common -= 1
        while len(mine) > common:
            self._cache.release(mine.pop())
        for block in theirs[common:]:
            self._cache.share(block)
            mine.append(block)
        self.table[target, common : len(theirs)] = self.table[source, common : len(theirs)]
        self.lengths[target] = self.lengths[source]
        self._forked[source] = self._forked[target] = self.lengths[source] % BLOCK_TOKENS != 0

    def _own_last_block(self, slot: int) -> None:
        """Copy-on-write: the last of a block's holders keeps it, the others write to copies."""
        blocks = self._blocks[slot]
        shared = blocks[-1]
        if self._cache.references(shared) > 1:
            copied = self._cache.copy(shared)
            blocks[-1] = copied
            self.table[slot, len(blocks) - 1] = copied
            self._cache.release(shared)
        self._forked[slot] = False
