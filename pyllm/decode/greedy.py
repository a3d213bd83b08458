"""Greedy search: the most likely token each step, the lowest id among equals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import _search
from .chain import FilterChain
from .policy import Advance, Choice, Hypothesis, Policy, Proposal, Request, Verified
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
        penalty = self._chain.penalty
        if penalty is None or self._counts or self._keeps:
            return None
        return Choice(None, [0], penalty=penalty, histories=[self._live[0].tokens])

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
        grown = 0
        for row, proposed in zip(logits, [*proposals[0].tokens, -1], strict=True):
            step = self.advance(row[None])
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
