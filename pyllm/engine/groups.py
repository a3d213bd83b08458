"""Prompts on their way through the engine, and how those of one step come to their next tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode import _search
from ..decode.policy import Advance, Choice, Policy
from ..program.batch import CHOICE, CUT, CUT_BY_K, UNCUT, DeviceRows, Runner, Summary
from ..program.program import Linear, Program
from .sources import Source
from .speculation import Draft, Lookup


class Group:
    """One prompt on its way: its policy and the live sequences that come from it.

    policy    chooses tokens; after the end, `policy.results()` is the outcome
    tokens    per live sequence the token chosen last, not run yet; empty until the whole prompt is in the cache
    source    what an encoder-decoder's sequences attend to; the group releases it when it ends
    guesses   per live sequence who proposes its next tokens; None without speculation
    rows      of the step at hand: how many rows of logits are the group's
    """

    def __init__(self, policy: Policy, slot: int, source: Source | None = None) -> None:
        self.policy = policy
        self.source = source
        self.tokens: list[int] = []
        self.slots = [slot]
        self.guesses: list[Lookup | Draft] | None = [] if policy.options.speculates else None
        self.rows = 1
        self.prompt: NDArray[np.int32] = np.array(policy.prompt_ids, np.int32)
        self.prompt_run = 0  # prompt tokens in the cache


class Choosing:
    """Which rows of a step's logits are whose, and which summary of them is of use.

    groups    those that choose in this step, in the order of their rows
    summary   to be filled by the step; None when everybody reads all logits anyway
    lanes     from `join` on, what chooses for `members`, while `others` advance by themselves; each with its first row
    chosen    what a device has chosen of this step's rows (`choose`): of each row, and of groups by their first row
    """

    def __init__(self, groups: Sequence[Group], summarises: bool) -> None:
        """summarises: whether the runner can."""
        self.groups = groups
        self.lanes: _search.Lanes | None = None
        self.members: list[tuple[Group, int]] = []
        self.others: list[tuple[Group, int]] = []
        self.chosen: tuple[NDArray[np.int32], dict[int, list[int]]] | None = None
        self._choices = np.zeros(0, CHOICE)
        self.summary: Summary | None = None
        scales = [group.policy.summary_scale if group.guesses is None else None for group in groups]
        if summarises and any(scale is not None for scale in scales):
            self.summary = Summary()
            if set(scales) != {1.0}:
                each = np.array([scale or 0.0 for scale in scales], np.float32)
                self.summary.scales = np.repeat(each, [group.rows for group in groups])

    def blocks(self, group: Group, row: int) -> NDArray[np.float32] | None:
        """The summary of a group's rows, which begin at `row`, if it is of use to the group."""
        if self.summary is None or group.guesses is not None or group.policy.summary_scale is None:
            return None
        return self.summary.blocks[row : row + group.rows]

    def join(self) -> None:
        """Has lanes choose from now on wherever a choice is all that there is to a step."""
        self.lanes = _search.Lanes()
        row = 0
        for group in self.groups:
            simple = group.guesses is None and group.rows == 1 and group.policy.join(self.lanes, row)
            (self.members if simple else self.others).append((group, row))
            row += group.rows

    def advance_members(self, logits: NDArray[np.float32]) -> list[Group]:
        """A step of the members, whose `tokens` are set. Returns those that have ended."""
        assert self.lanes is not None
        summary = self.summary
        blocks, scales = (None, None) if summary is None else (summary.blocks, summary.scales)
        tokens, over = self.lanes.advance(logits, blocks, scales)
        if tokens is None:
            group, row = self.members[over[0]]
            self._refuse(group, logits[row : row + 1])
        return self._settle(tokens or [], over)

    def take_members(self, rows: DeviceRows) -> list[Group]:
        """The same with what a device has chosen."""
        assert self.lanes is not None
        assert self.chosen is not None
        tokens, over = self.lanes.take(self.chosen[0])
        if tokens is None:
            group, row = self.members[over[0]]
            self._refuse(group, rows[row : row + 1].host())
        return self._settle(tokens or [], over)

    def _refuse(self, group: Group, row: NDArray[np.float32]) -> None:
        group.policy.advance(row)  # raises what is wrong with the row
        raise AssertionError("a row without a choice")

    def _settle(self, tokens: list[int], over: list[int]) -> list[Group]:
        for (group, _), token in zip(self.members, tokens, strict=True):
            group.tokens = [token]
        ended = [self.members[i][0] for i in over]
        for group in ended:
            group.policy.settle()
            group.tokens = []
        return ended

    def choose(self, rows: DeviceRows) -> None:
        """Has a device choose wherever a choice from its rows is all that there is to a step."""
        if len(self._choices) != len(rows):
            self._choices = np.zeros(len(rows), CHOICE)
        every, width = self._choices, rows.shape[1]
        wanted: list[tuple[Group, int, Choice]] = []
        cuts = UNCUT
        if self.lanes is not None:
            cuts = self.lanes.choices(every.view(np.uint8), width)
        for group, row in self._by_row() if self.lanes is None else self.others:
            choice = group.policy.choice if group.guesses is None and rows.can_choose else None
            if choice is not None:
                wanted.append((group, row, choice))
        self._penalise(rows, wanted)
        chosen: dict[int, list[int]] = {}
        for group, row, choice in wanted:
            if len(choice.sequences) == group.rows:
                cuts = max(cuts, fill(every[row : row + group.rows], choice, width))
            else:  # the prompt's row, of which several sequences start
                own = np.zeros(len(choice.sequences), CHOICE)
                known = fill(own, choice, width)
                chosen[row] = rows[row : row + 1].choose(own, known).tolist()
        tokens = rows.choose(every, cuts) if self.members or len(wanted) > len(chosen) else np.zeros(0, np.int32)
        for group, row, _ in wanted:
            if row not in chosen:
                chosen[row] = tokens[row : row + group.rows].tolist()
        self.chosen = tokens, chosen

    def advance_group(self, group: Group, row: int, rows: DeviceRows) -> Advance | None:
        """A step of a group whose rows, from `row` on, are on a device. None: its policy needs them here."""
        assert self.chosen is not None
        tokens = self.chosen[1].get(row)
        if tokens is not None and min(tokens) >= 0:
            return group.policy.take(tokens)
        if group.guesses is None and group.policy.ranked and rows.can_rank(group.policy.ranked):
            return group.policy.rank(rows)
        return None

    def _by_row(self) -> list[tuple[Group, int]]:
        row, listed = 0, []
        for group in self.groups:
            listed.append((group, row))
            row += group.rows
        return listed

    def _penalise(self, rows: DeviceRows, wanted: Sequence[tuple[Group, int, Choice]]) -> None:
        asked = [(row, choice) for _, row, choice in wanted if choice.penalty != 1]
        if asked:
            at = [row + i for row, choice in asked for i in range(len(choice.histories))]
            histories = [history for _, choice in asked for history in choice.histories]
            rows.penalise(at, histories, [choice.penalty for _, choice in asked for _ in choice.histories])


def fill(entries: NDArray[Any], choice: Choice, width: int) -> int:
    """Sets the entries (CHOICE) of a policy's rows of `width` columns; returns UNCUT, CUT_BY_K or CUT."""
    if choice.cuts is None:
        entries["temperature"] = 0
        return UNCUT
    temperature, top_k, top_p, min_p = choice.cuts
    by_k = 0 < top_k < width
    for i, sequence in enumerate(choice.sequences):
        at = choice.seed, top_k if by_k else 0, choice.seed_index, sequence, choice.step
        entries[i] = (temperature, top_p, min_p, *at)
    if top_p < 1 and not by_k:
        return CUT
    return CUT_BY_K if by_k or min_p > 0 else UNCUT


def can_summarise(runner: Runner) -> bool:
    """Whether a runner summarises its logits: plain stand-ins don't, nor programs whose output no matrix gives."""
    program = getattr(runner, "program", None)
    given_by_matrix = not isinstance(program, Program) or isinstance(program.ops[-1], Linear)
    return given_by_matrix and "summary" in inspect.signature(runner.run).parameters
