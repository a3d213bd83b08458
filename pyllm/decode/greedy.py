"""Greedy search: the most likely token each step, the lowest id among equals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _search
from .chain import FilterChain
from .policy import Advance, Hypothesis, Policy, Request
from .stopping import Stopping
from .track import Stop


class GreedyPolicy(Policy):
    """One sequence; every step is a pass over one row."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._chain = FilterChain(request)
        self._stopping = Stopping(request)
        self._counts = request.options.output_scores or request.options.return_alternatives
        self._result: list[Hypothesis] = []

    def results(self) -> list[Hypothesis]:
        return self._result

    def sequence_tokens(self, index: int) -> list[int]:
        return self._live[0].tokens[self.prompt_length :]

    def _advance(self, logits: NDArray[np.float32]) -> Advance:
        track = self._live[0]
        scores = self._chain.apply(logits, [track.tokens]) if self._chain else logits
        token = _search.argmax(scores[0])
        if token < 0:
            raise self._not_a_number()
        if self._counts:
            self._keep_scores([track], scores)
            track.logprob += float(scores[0, token]) - _search.log_sum_exp(scores[0])
        track.take(token)
        stop = self._stopping.at_end_token(token)
        if stop is None and self._stopping.reads_text:
            stop = self._stopping.in_text([track.tokens], self._scores_so_far())[0]
        stop = stop or self._stopping.for_all(len(track.tokens))
        if stop is not None:
            self._end(stop)
            return Advance([], [])
        return Advance([0], [token])

    def _stop(self, reason: str) -> None:
        self._end(Stop(reason))

    def _end(self, stop: Stop) -> None:
        track = self._live[0]
        self._result = [self._hypothesis(track, track.logprob if self._counts else None, *stop)]
        self.finished = True
