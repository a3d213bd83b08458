"""A steady decode that runs ahead: a step is launched before the tokens of the step before it have been read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import PyllmError
from ..program.batch import CHOICE, AheadRunner, Batch, KvCache, Runner, Tokens, on_host
from .batching import BatchBuilder
from .groups import Choosing, Group
from .sequences import SequenceTable
from .sources import block_table


class RunAhead:
    """The step that is in the air, if any, and the one after it.

    Only where every group of a step is nothing but a choice from one row. A step goes ahead while nobody ends by length
    with the tokens that are still on their way; who ends by an end token, or is dropped, has a row in the step that is
    in the air already, which nobody reads.
    """

    def __init__(
        self, runner: Runner, cache: KvCache, cross: KvCache | None, sequences: SequenceTable, builder: BatchBuilder
    ) -> None:
        self._runner = cast(AheadRunner, runner) if hasattr(runner, "run_ahead") else None
        self._cache, self._cross = cache, cross
        self._sequences, self._builder = sequences, builder
        self._flight: Tokens | None = None
        self._choosing = Choosing([], False)  # whose rows the flight has
        self._slots: list[int] = []  # of its rows
        self._room = 0  # least number of tokens that one of its sequences may still get, the flight's among them
        self._choices = np.zeros(0, CHOICE)
        self._steps: NDArray[np.uint32] = self._choices["step"]
        self._cuts = 0

    def flies(self) -> bool:
        """Whether a step is in the air that anybody waits for."""
        if self._flight is not None and not any(group.slots for group in self._choosing.groups):
            self._flight = None
        return self._flight is not None

    def forget(self) -> None:
        """Nobody waits for the step that is in the air."""
        self._flight = None

    def begin(self, choosing: Choosing, batch: Batch) -> bool:
        """Launches a batch whose tokens are known, if its step can go ahead. Raises what the runner's `run` does."""
        if not self._can_take(choosing, batch):
            return False
        if choosing.lanes is None:
            choosing.join()
        assert choosing.lanes is not None
        if choosing.others:
            return False
        assert self._runner is not None
        self._choosing = choosing
        self._slots = [group.slots[0] for group in choosing.groups]
        self._room = min(group.policy.max_length - len(group.policy.live_tokens(0)) for group in choosing.groups)
        self._choices = np.zeros(len(batch.ids), CHOICE)
        self._steps = self._choices["step"]
        self._cuts = choosing.lanes.choices(self._choices.view(np.uint8), self._runner.vocab_size)
        self._flight = self._launch(batch, None)
        return True

    def _can_take(self, choosing: Choosing, batch: Batch) -> bool:
        """Whether the batch has one row of each of its groups, which all decode, and the runner so much room."""
        rows = len(batch.ids)
        if self._runner is None or not rows == len(batch.logit_rows) == len(choosing.groups):
            return False
        simple = all(group.tokens and group.rows == 1 and group.guesses is None for group in choosing.groups)
        return simple and 0 < rows <= self._runner.rows_ahead

    def land(self, go_on: bool) -> tuple[list[Group], list[Group]]:
        """The groups that took the tokens of the step in the air, and those of them that have ended.

        go_on: nothing has changed since its launch, so the next step may be launched first.
        """
        flight, self._flight = self._flight, None
        assert flight is not None
        if go_on and self._room > 1:
            self._flight = self._launch_next(flight)
        tokens = flight.wait()
        self._room -= 1
        members = self._choosing.members
        if go_on or all(group.slots for group, _ in members):
            ended = self._choosing.take_members(tokens, lambda group, _: self._refused(group))
            return list(self._choosing.groups), ended
        left = [(group, int(tokens[row])) for group, row in members if group.slots]
        for group, token in left:
            if token < 0:
                self._choosing.refuse(group, self._refused(group))
        for group, token in left:
            group.tokens = group.policy.take([token]).tokens
        advanced = [group for group, _ in left]
        return advanced, [group for group in advanced if not group.tokens]

    def _launch_next(self, after: Tokens) -> Tokens | None:
        """None when something is in the way, such as a full cache: what is in the air comes first, and a step of known
        tokens then meets the same in its turn."""
        try:
            changed = self._sequences.append(self._slots)
            batch = self._builder.repeat(self._slots if changed else None, None)
            self._steps += 1
            return self._launch(batch, after)
        except PyllmError:
            for group in self._choosing.groups:
                if self._sequences.lengths[group.slots[0]] > len(group.policy.live_tokens(0)):
                    self._sequences.shorten(group.slots[0], 1)
            return None

    def _launch(self, batch: Batch, after: Tokens | None) -> Tokens:
        assert self._runner is not None
        return self._runner.run_ahead(batch, self._cache, self._choices, self._cuts, cross=self._cross, after=after)

    def _refused(self, group: Group) -> NDArray[np.float32]:
        """The logits from which nothing could be chosen, so that the policy can say why: by the same step again, which
        writes what is in the cache already."""
        assert self._runner is not None
        tokens, slot, source = group.policy.live_tokens(0), group.slots[0], group.source
        batch = Batch(
            ids=_one(tokens[-1]),
            positions=_one(len(tokens) - 1),
            starts=np.array([0, 1], np.int32),
            context=_one(len(tokens)),
            block_table=self._sequences.table[slot : slot + 1],
            logit_rows=_one(0),
        )
        more: dict[str, Any] = {}
        if source is not None:
            batch.cross_table, batch.cross_context = block_table([source.blocks]), _one(source.length)
            more["cross"] = self._cross
        row = on_host(self._runner, self._runner.run(batch, self._cache, **more))
        return np.full_like(row, np.nan) if np.isfinite(row).all() else row


def _one(value: int) -> NDArray[np.int32]:
    return np.array([value], np.int32)
