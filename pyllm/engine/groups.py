"""Prompts on their way through the engine, and how those of one step come to their next tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..decode import _search
from ..decode.policy import Policy
from ..program.batch import Runner, Summary
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
    """

    def __init__(self, groups: Sequence[Group], summarises: bool) -> None:
        """summarises: whether the runner can."""
        self.groups = groups
        self.lanes: _search.Lanes | None = None
        self.members: list[tuple[Group, int]] = []
        self.others: list[tuple[Group, int]] = []
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
            group.policy.advance(logits[row : row + 1])  # raises what is wrong with the row
            raise AssertionError("a row without a choice")
        for (group, _), token in zip(self.members, tokens, strict=True):
            group.tokens = [token]
        ended = [self.members[i][0] for i in over]
        for group in ended:
            group.policy.settle()
            group.tokens = []
        return ended


def can_summarise(runner: Runner) -> bool:
    """Whether a runner summarises its logits: plain stand-ins don't, nor programs whose output no matrix gives."""
    program = getattr(runner, "program", None)
    given_by_matrix = not isinstance(program, Program) or isinstance(program.ops[-1], Linear)
    return given_by_matrix and "summary" in inspect.signature(runner.run).parameters
