"""Greedy search: the most likely token each step, the lowest id among equals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..program.batch import DeviceRows
from . import _search
from .chain import FilterChain
from .policy import Hypothesis, Policy, Request
from .steps import Advance, Choice, Proposal, Verified
from .stopping import Stopping
from .track import Stop


class GreedyPolicy(Policy):
    """One sequence; every step is a pass over one row."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._chain = FilterChain(request)
        self._stopping = Stopping(request)
        self._counts = request.options.output_scores or request.options.return_alternatives
        self._scale = None if self._chain or self._counts else 0.0
        self._is_told = self._chain.tells and not self._counts and not self._reads_logits
        self._result: list[Hypothesis] = []

    def results(self) -> list[Hypothesis]:
        return self._result

    def sequence_tokens(self, index: int) -> list[int]:
        return self._live[0].tokens[self.prompt_length :]

    @property
    def summary_scale(self) -> float | None:
        return self._scale

    def join(self, lanes: _search.Lanes, row: int) -> bool:
        if self._scale is None or self._keeps or not self._stopping.by_tokens:
            return False
        track = self._live[0]
        lanes.add(row, track.tokens, self._stopping.ends, self.prompt_length, self.max_length, None, 0, 0, 0)
        return True

    @property
    def choice(self) -> Choice | None:
        return self._choice([]) if self._is_told else None

    def verify_choice(self, proposals: Sequence[Proposal]) -> Choice | None:
        return self._choice(proposals[0].tokens) if self._is_told else None

    def _choice(self, proposed: list[int]) -> Choice:
        """Of the next token and those after the proposed ones."""
        tokens, rows = self._live[0].tokens, range(len(proposed) + 1)
        changes = [self._chain.changes([*tokens, *proposed[:i]]) for i in rows] if self._chain else []
        return Choice(None, [0] * len(rows), [0] * len(rows), changes)

    def take(self, tokens: list[int]) -> Advance:
        (token,) = tokens
        return self._grow(token)

    def settle(self) -> None:
        tokens = self._live[0].tokens
        stop = self._stopping.at_end_token(tokens[-1]) or self._stopping.for_all(len(tokens))
        assert stop is not None
        self._end(stop)

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        track = self._live[0]
        scores = self._chain.apply(logits, [track.tokens]) if self._chain else logits
        token = _search.best_token(scores, blocks)
        if token < 0:
            raise self._not_a_number()
        if self._counts:
            self._keep_scores([track], scores)
            track.logprob += float(scores[0, token]) - _search.log_sum_exp(scores[0])
        return self._grow(token)

    def _grow(self, token: int) -> Advance:
        track = self._live[0]
        track.take(token)
        stop = self._stopping.at_end_token(token)
        if stop is None and self._stopping.reads_text:
            stop = self._stopping.in_text([track.tokens], self._scores_so_far())[0]
        stop = stop or self._stopping.for_all(len(track.tokens))
        if stop is not None:
            self._end(stop)
            return Advance([], [])
        return Advance([0], [token])

    def _verify(self, logits: NDArray[np.float32], proposals: Sequence[Proposal]) -> Verified:
        return self._checked((self.advance(row[None]) for row in logits), proposals)

    def _take_verified(self, tokens: list[int], proposals: Sequence[Proposal], rows: DeviceRows) -> Verified:
        def step(i: int, token: int) -> Advance:
            return self._grow(token) if token >= 0 else self.advance(rows[i : i + 1].host())

        return self._checked((step(i, token) for i, token in enumerate(tokens)), proposals)

    def _checked(self, steps: Iterator[Advance], proposals: Sequence[Proposal]) -> Verified:
        """Takes steps as long as they choose what was proposed, and one more."""
        grown = 0
        for step, proposed in zip(steps, [*proposals[0].tokens, -1], strict=False):
            grown += 1
            if step.tokens != [proposed]:
                break
        return Verified(step.parents, step.tokens, [grown])

    def _stop(self, reason: str) -> None:
        self._end(Stop(reason))

    def _end(self, stop: Stop) -> None:
        track = self._live[0]
        self._result = [self._hypothesis(track, track.logprob if self._counts else None, *stop)]
        self.finished = True
