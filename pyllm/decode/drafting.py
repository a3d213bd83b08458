"""How an assistant model chooses the tokens it proposes for a request: as the request asks, with its own logits."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _search
from .chain import FilterChain
from .changes import Changes
from .policy import Policy
from .sample import NO_CUTS, PROPOSED, Cuts


class Drafted(NamedTuple):
    """A proposed token, its probability, and the distribution it was drawn from (None: the most likely one)."""

    token: int
    probability: float
    drawn_from: _search.Weights | None


def likeliest(token: int, logit: float, total: float) -> Drafted:
    """Of a row whose log-sum-exp is `total`."""
    return Drafted(token, float(np.exp(logit - total)), None)


class Drafting:
    """The choices of one request's assistant.

    The filters are the request's, but for a caller's own functions: those see no text that is only proposed. What is
    proposed never changes the outcome (Policy.verify), only how much of it is right.
    """

    def __init__(self, policy: Policy) -> None:
        request = policy.request
        options = dataclasses.replace(
            request.options, logits_processor=(), prefix_allowed_tokens_fn=None, remove_invalid_values=False
        )
        self._chain = FilterChain(dataclasses.replace(request, options=options))
        self._options = options
        self._policy = policy

    def changes(self, tokens: list[int]) -> Changes | None:
        """What is to be done to the row after `tokens` for its best token to be the one that `choose` takes; None where
        there is more to it."""
        return None if self._options.do_sample or not self._chain.tells else self._chain.changes(tokens)

    def choose(self, row: NDArray[np.float32], tokens: list[int], sequence: int) -> Drafted | None:
        """The token after `tokens` (proposed ones included) from the assistant's logits [1, V], which are overwritten.
        sequence: the index of the returned sequence. None where the assistant has nothing to propose (NaN)."""
        o = self._options
        if not o.do_sample:
            scores = self._chain.apply(row, [tokens])
            token = _search.best_token(scores)
            if token < 0:
                return None
            total = _search.log_sum_exp(scores[0]) if o.assistant_confidence_threshold > 0 else float(scores[0, token])
            return likeliest(token, float(scores[0, token]), total)
        cuts: Cuts = (o.temperature, o.top_k, o.top_p, o.min_p or 0.0)
        if self._chain.sampling_fused:
            scores = self._chain.apply_plain(row, [tokens])
        else:
            scores, cuts = self._chain.apply(row, [tokens]), NO_CUTS
        found = _search.weights(scores[0], *cuts)
        if found is None:
            return None
        p, step = self._policy, len(tokens) - self._policy.prompt_length
        token = found.draw(_search.uniform(p.seed, p.request.seed_index, sequence, step, PROPOSED))
        return Drafted(token, found.probability(token), found)
