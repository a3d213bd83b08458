"""Prompts on their way through the engine, and how those of one step come to their next tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode import _search, changes
from ..decode.policy import Policy
from ..decode.steps import Advance, Choice, Ranking
from ..program.batch import CHOICE, CUT, CUT_BY_K, UNCUT, Batch, Best, DeviceRows, Runner, Summary
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
    best      what it has ranked, of groups by their first row
    """

    def __init__(self, groups: Sequence[Group], summarises: bool) -> None:
        """summarises: whether the runner can."""
        self.groups = groups
        self.lanes: _search.Lanes | None = None
        self.members: list[tuple[Group, int]] = []
        self.others: list[tuple[Group, int]] = []
        self.chosen: tuple[NDArray[np.int32], dict[int, list[int]]] | None = None
        self.best: dict[int, Best] = {}
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

    @property
    def wanted(self) -> dict[str, Any]:
        """The summary as an argument of run(), which the plainest stand-ins lack."""
        return {} if self.summary is None else {"summary": self.summary}

    def note_attention(self, batch: Batch, weights: Sequence[NDArray[np.float32]]) -> None:
        """Shows every group what the first head attends to; weights [H, rows, keys] of each sequence."""
        sequences = np.searchsorted(batch.starts, batch.logit_rows, side="right") - 1  # of each row of logits
        at = 0
        for group in self.groups:
            rows = [weights[s][0, -1] for s in sequences[at : at + group.rows]]
            at += group.rows
            group.policy.note_attention(np.stack(rows))

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
            self.refuse(group, logits[row : row + 1])
        return self._settle(tokens or [], over)

    def take_chosen(self, rows: DeviceRows) -> list[Group]:
        """The same with what `choose` has chosen of these rows."""
        assert self.chosen is not None
        return self.take_members(self.chosen[0], lambda _, row: rows[row : row + 1].host())

    def take_members(
        self, chosen: NDArray[np.int32], logits: Callable[[Group, int], NDArray[np.float32]]
    ) -> list[Group]:
        """The same with what a device has chosen, of each row. logits: those of a group, in a row, for which that was
        nothing."""
        assert self.lanes is not None
        tokens, over = self.lanes.take(chosen)
        if tokens is None:
            group, row = self.members[over[0]]
            self.refuse(group, logits(group, row))
        return self._settle(tokens or [], over)

    def refuse(self, group: Group, row: NDArray[np.float32]) -> None:
        """Raises what is wrong with a group's logits [1, V]."""
        group.policy.advance(row)
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
        """Has a device choose, and rank continuations, wherever nothing but that is left to be done with its rows."""
        if len(self._choices) != len(rows):
            self._choices = np.zeros(len(rows), CHOICE)
        every, width = self._choices, rows.shape[1]
        cuts = UNCUT
        if self.lanes is not None:
            cuts = self.lanes.choices(every.view(np.uint8), width)
        wanted, ranking = self._wanted(rows)
        rows_of = [(row, one.changes) for _, row, one in wanted]
        rows_of += [(row, one.changes) for _, row, one in ranking if one.changes is not None]
        changes.make(rows, [(row + i, one) for row, of_rows in rows_of for i, one in enumerate(of_rows)])
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
        self.best = self._ranked(rows, [one for one in ranking if one[2].changes is None])
        self.best |= self._ranked(rows, [one for one in ranking if one[2].changes is not None])

    def _wanted(self, rows: DeviceRows) -> tuple[list[tuple[Group, int, Choice]], list[tuple[Group, int, Ranking]]]:
        """Who has the device choose, and who has it rank."""
        wanted: list[tuple[Group, int, Choice]] = []
        ranking: list[tuple[Group, int, Ranking]] = []
        for group, row in (self._by_row() if self.lanes is None else self.others) if rows.can_choose else ():
            policy, proposals = group.policy, [guess.proposal for guess in group.guesses or ()]
            if (choice := policy.verify_choice(proposals) if proposals else policy.choice) is not None:
                wanted.append((group, row, choice))
            elif (asked := policy.ranking) is not None and rows.can_rank(asked.continuations):
                ranking.append((group, row, asked))
        return wanted, ranking

    def _ranked(self, rows: DeviceRows, ranking: Sequence[tuple[Group, int, Ranking]]) -> dict[int, Best]:
        """What was asked for, by groups' first rows. One launch takes all from the first to the last."""
        if not ranking:
            return {}
        first, last = ranking[0][1], ranking[-1][1] + ranking[-1][0].rows
        best = rows[first:last].best(max(one.continuations for _, _, one in ranking), ranking[0][2].changes is None)
        pieces = [(row, slice(row - first, row - first + group.rows)) for group, row, _ in ranking]
        return {row: Best(best.values[at], best.ids[at], best.sums[at]) for row, at in pieces}

    def advance_group(self, group: Group, row: int, rows: DeviceRows) -> Advance | None:
        """A step of a group whose rows, from `row` on, are on a device. None: its policy needs them here."""
        assert self.chosen is not None
        tokens = self.chosen[1].get(row)
        if tokens is not None and group.guesses:
            return group.policy.take_verified(tokens, [guess.proposal for guess in group.guesses], rows)
        if tokens is not None and min(tokens) >= 0:
            return group.policy.take(tokens)
        return group.policy.rank(self.best[row]) if row in self.best else None

    def _by_row(self) -> list[tuple[Group, int]]:
        row, listed = 0, []
        for group in self.groups:
            listed.append((group, row))
            row += group.rows
        return listed


def fetched(policy: Policy, rows: DeviceRows, told: set[str]) -> NDArray[np.float32]:
    """Logits that a device can't choose from by itself; why is logged once: told has the reasons that were."""
    why = policy.needs_logits
    if why not in told:
        told.add(why)
        logging.getLogger("pyllm").debug("logits come from the device to the host: %s", why)
    return rows.host()


def fill(entries: NDArray[Any], choice: Choice, width: int) -> int:
    """Sets the entries (CHOICE) of a policy's rows of `width` columns; returns UNCUT, CUT_BY_K or CUT."""
    if choice.cuts is None:
        entries["temperature"] = 0
        return UNCUT
    temperature, top_k, top_p, min_p = choice.cuts
    by_k = 0 < top_k < width
    for i, (sequence, step) in enumerate(zip(choice.sequences, choice.steps, strict=True)):
        at = choice.seed, top_k if by_k else 0, choice.seed_index, sequence, step
        entries[i] = (temperature, top_p, min_p, *at)
    if top_p < 1 and not by_k:
        return CUT
    return CUT_BY_K if by_k or min_p > 0 else UNCUT


def can_summarise(runner: Runner) -> bool:
    """Whether a runner summarises its logits: plain stand-ins don't, nor programs whose output no matrix gives."""
    program = getattr(runner, "program", None)
    given_by_matrix = not isinstance(program, Program) or isinstance(program.ops[-1], Linear)
    return given_by_matrix and "summary" in inspect.signature(runner.run).parameters
