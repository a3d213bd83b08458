"""Builds the ragged `Batch` of each step in arrays that are allocated once and reused. Decides nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..program.batch import Batch
from .sequences import SequenceTable
from .sources import Source, block_table


class BatchBuilder:
    """`start`, then `add` each sequence's rows, then `build`; `repeat` makes the next batch of a steady decode.

    The arrays of a built batch are views of this builder's: they hold until the next `start` or `repeat`.
    """

    def __init__(self, sequences: SequenceTable, rows: int = 64) -> None:
        self._sequences = sequences
        self._count = 0  # rows
        self._slots: list[int] = []
        self._sources: list[Source] = []  # of each sequence, for an encoder-decoder
        self._wanted = 0
        self._batch: Batch | None = None
        self._tables = np.zeros((0, 0), np.int32)
        self._allocate(rows)

    def start(self) -> None:
        """Begins an empty batch."""
        self._count = self._wanted = 0
        self._slots = []
        self._sources = []
        self._batch = None

    def add(
        self, slot: int, ids: list[int] | NDArray[np.int32], logits_from: int, source: Source | None = None
    ) -> None:
        """The next rows of one sequence, for which the slot already has room: `ids` at its last len(ids) positions.
        Rows from index `logits_from` on want logits (-1: the last one only; len(ids): none). source: what an
        encoder-decoder's sequence attends to."""
        count = len(ids)
        if self._count + count > len(self._ids):
            self._reserve(2 * (self._count + count))
        begin, end = self._count, self._count + count
        sequence, context = len(self._slots), self._sequences.lengths[slot]
        self._ids[begin:end] = ids
        self._positions[begin:end] = self._iota[:count]
        self._positions[begin:end] += context - count
        self._context[sequence] = context
        self._starts[sequence + 1] = end
        first = begin + logits_from if logits_from >= 0 else end + logits_from
        self._logit_rows[self._wanted : self._wanted + end - first] = self._iota[: end - first]
        self._logit_rows[self._wanted : self._wanted + end - first] += first
        self._wanted += end - first
        self._slots.append(slot)
        if source is not None:
            self._sources.append(source)
        self._count = end

    def build(self) -> Batch:
        """The batch of what was added."""
        rows, sequences = self._count, len(self._slots)
        self._reserve_tables(sequences)
        self._batch = Batch(
            ids=self._ids[:rows],
            positions=self._positions[:rows],
            starts=self._starts[: sequences + 1],
            context=self._context[:sequences],
            block_table=self._tables[:sequences],
            logit_rows=self._logit_rows[: self._wanted],
        )
        if self._sources:
            self._batch.cross_table = block_table([source.blocks for source in self._sources])
            self._batch.cross_context = np.array([source.length for source in self._sources], np.int32)
        self._gather(self._slots)
        return self._batch

    def repeat(self, slots: list[int] | None, tokens: list[int] | None) -> Batch:
        """The batch after a batch of single rows: as many sequences, each one token further, of the same sources.

        slots: where the sequences lie now, or None when neither slots nor block lists have changed. tokens: None when
        they are not known yet; the ids are then meaningless.
        """
        batch = self._batch
        if batch is None:
            raise RuntimeError("[batch] repeat needs a built batch; call start, add and build first")
        if tokens is not None and len(tokens) == 1:
            batch.ids[0] = tokens[0]
        elif tokens is not None:
            batch.ids[:] = tokens
        batch.positions += 1
        batch.context += 1
        if slots is not None:
            self._reserve_tables(len(slots))
            batch.block_table = self._tables[: len(slots)]
            self._gather(slots)
        return batch

    def _gather(self, slots: list[int]) -> None:
        count = len(slots)
        self._slot_array[:count] = slots
        np.take(self._sequences.table, self._slot_array[:count], axis=0, out=self._tables[:count], mode="clip")

    def _reserve_tables(self, sequences: int) -> None:
        capacity, width = self._tables.shape
        if capacity < sequences or width != self._sequences.table.shape[1]:
            capacity = max(capacity, 2 * sequences)
            self._tables = np.zeros((capacity, self._sequences.table.shape[1]), np.int32)

    def _reserve(self, rows: int) -> None:
        """Room for `rows` rows and as many sequences; what was added so far is kept."""
        old = self._arrays()
        self._allocate(rows)
        for before, now in zip(old, self._arrays(), strict=True):
            now[: len(before)] = before

    def _allocate(self, rows: int) -> None:
        self._ids = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._starts = np.zeros(rows + 1, np.int32)
        self._context = np.zeros(rows, np.int32)
        self._logit_rows = np.zeros(rows, np.int32)
        self._slot_array = np.zeros(rows, np.intp)
        self._iota = np.arange(rows, dtype=np.int32)

    def _arrays(self) -> tuple[NDArray[np.int32], ...]:
        return self._ids, self._positions, self._starts, self._context, self._logit_rows
