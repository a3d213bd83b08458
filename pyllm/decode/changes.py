"""What filters do to a row of logits, as far as it can be told without reading it: for a device to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..program.batch import DeviceRows, Edit


class Penalty(NamedTuple):
    """The repetition penalty of these tokens (filters.repetition_penalty)."""

    tokens: Sequence[int]
    factor: float


class LogSoftmax(NamedTuple):
    """Log-probabilities. marks: rows that have none become NaN; they stay as they are otherwise."""

    marks: bool


class Changes:
    """Of one row, in order. Its methods are called in the order of the filters that they stand for."""

    def __init__(self, of_log_probabilities: bool = False) -> None:
        """of_log_probabilities: the row is to become such before anything else, NaN if it can't."""
        self.steps: list[Edit | Penalty | LogSoftmax] = [LogSoftmax(True)] if of_log_probabilities else []

    def penalise(self, tokens: Sequence[int], factor: float) -> None:
        """As filters.repetition_penalty."""
        self.steps.append(Penalty(tokens, factor))

    def add(self, biases: Mapping[int, np.float32]) -> None:
        """As filters.sequence_bias. What is ruled out stays so, as nothing is infinitely likely."""
        if biases:
            added = self._edit().added
            for token, bias in biases.items():
                added[token] = added.get(token, 0.0) + float(bias)

    def rule_out(self, tokens: Sequence[int]) -> None:
        """As filters.suppress."""
        if tokens:
            self._edit().ruled_out += tokens

    def leave(self, tokens: Sequence[int]) -> None:
        """As filters.force: nothing of what was done before is left, but for rows without log-probabilities."""
        self.steps = [step for step in self.steps if step == LogSoftmax(True)]
        self.steps.append(Edit(only=tuple(tokens)))

    def renormalise(self) -> None:
        """As filters.renormalize."""
        self.steps.append(LogSoftmax(False))

    def _edit(self) -> Edit:
        if not self.steps or not isinstance(self.steps[-1], Edit):
            self.steps.append(Edit())
        last = self.steps[-1]
        assert isinstance(last, Edit)
        return last


def make(rows: DeviceRows, changes: Sequence[tuple[int, Changes]]) -> None:
    """Changes rows, each named once, on the device: a launch or two where they want the same kinds of steps."""
    for number in range(max((len(one.steps) for _, one in changes), default=0)):
        steps = [(row, one.steps[number]) for row, one in changes if number < len(one.steps)]
        edits = [(row, step) for row, step in steps if isinstance(step, Edit)]
        penalties = [(row, step) for row, step in steps if isinstance(step, Penalty)]
        normalised = [(row, step.marks) for row, step in steps if isinstance(step, LogSoftmax)]
        if edits:
            rows.edit([row for row, _ in edits], [step for _, step in edits])
        if penalties:
            histories = [list(step.tokens) for _, step in penalties]
            rows.penalise([row for row, _ in penalties], histories, [step.factor for _, step in penalties])
        if normalised:
            rows.log_softmax([row for row, _ in normalised], [marks for _, marks in normalised])
