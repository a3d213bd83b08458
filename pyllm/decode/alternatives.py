"""Alternatives at a position, as CTranslate2's return_alternatives gives them, for one prompt.

Right after the prompt (which ends with the target prefix, if there is one) the num_return_sequences most likely next
tokens are taken, end tokens ruled out; each is then completed by itself: by greedy search, or, when num_beams > 1, by a
beam search of its own. Tokens less likely than min_alternative_expansion_prob are left out, though never the best one.
Results keep the order of the first tokens' probabilities. The score of each is CTranslate2's too: the first token's
log-probability, plus the sum of those of its completion / length of the completion ** length_penalty. Probabilities of
the first token are those after the filters, renormalised. Two things differ: an end token counts as part of the
completion (CTranslate2 doesn't count it unless asked to return it), and coverage sees the first token's attention too.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from . import _search, filters
from .beam import BeamPolicy
from .chain import FilterChain
from .greedy import GreedyPolicy
from .policy import Hypothesis, Policy, Request
from .steps import Advance
from .stopping import Stopping
from .track import Stop, Track


class _Alternative:
    """One first token: its log-probability, where it begins, and the search that completes it, None once it needs
    none."""

    def __init__(self, logprob: float, track: Track, stop: Stop | None) -> None:
        self.logprob = logprob
        self.track = track
        self.stop = stop
        self.begin = len(track.tokens)
        self.search: Policy | None = None


class AlternativesPolicy(Policy):
    """One live sequence until the position is reached, then those of every alternative that has not finished."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._chain = FilterChain(request)
        self._stopping = Stopping(request)
        self._alternatives: list[_Alternative] = []

    def results(self) -> list[Hypothesis]:
        return [self._result(one) for one in self._alternatives]

    def sequence_tokens(self, index: int) -> list[int]:
        if not self._alternatives:
            return self._live[0].tokens[self.prompt_length :]
        one = self._alternatives[index]
        return one.track.tokens[self.prompt_length :] if one.search is None else one.search.sequence_tokens(0)

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        return self._complete(logits) if self._alternatives else self._expand(logits)

    def _expand(self, logits: NDArray[np.float32]) -> Advance:
        """The step at the position: from one sequence to one for each alternative."""
        track, o = self._live[0], self.options
        scores = self._chain.apply(logits, [track.tokens]) if self._chain else logits
        is_forced = o.forced_bos_token_id is not None and len(track.tokens) == self.prompt_length == 1
        if not is_forced:
            _rule_out(scores, o.eos_token_id)
        if o.num_beams == 1:
            self._keep_scores([track], scores)
        if not _search.log_softmax_(scores):
            raise self._not_a_number()
        if o.num_beams > 1:
            self._keep_scores([track], scores)
        if is_forced:  # a language code and the like: the position is the next one
            only = self._begun(track, _search.argmax(scores[0]), 0.0)
            if only.stop is None:
                self._live = [only.track]
                return Advance([0], [only.track.tokens[-1]])
            self._alternatives = [only]
        else:
            self._alternatives = [self._begun(track, token, value) for value, token in self._best(scores[0])]
        going = [one for one in self._alternatives if one.stop is None]
        for one in going:
            one.search = self._search_from(one.track)
        self._live = [one.track for one in going]
        self.finished = not going
        return Advance([0] * len(going), [one.track.tokens[-1] for one in going])

    def _best(self, row: NDArray[np.float32]) -> list[tuple[float, int]]:
        """(log-probability, token) of the first tokens, best first."""
        o = self.options
        values, tokens = _search.top_k(row, o.num_return_sequences)
        ranked = list(zip(values, tokens, strict=True))
        likely = [one for one in ranked if np.exp(one[0]) >= o.min_alternative_expansion_prob]
        return [one for one in likely if one[0] > -np.inf] or ranked[:1]

    def _begun(self, before: Track, token: int, logprob: float) -> _Alternative:
        track = before.fork()
        track.take(token)
        stop = self._stopping.at_end_token(token)
        if stop is None and self._stopping.reads_text:
            stop = self._stopping.in_text([track.tokens], self._scores_so_far())[0]
        return _Alternative(logprob, track, stop or self._stopping.for_all(len(track.tokens)))

    def _search_from(self, track: Track) -> Policy:
        """A search of its own that goes on from `track`, counting lengths from the same prompt as everything here."""
        options = dataclasses.replace(self.options, num_return_sequences=1)
        request = dataclasses.replace(self.request, options=options)
        search = BeamPolicy(request) if self.options.num_beams > 1 else GreedyPolicy(request)
        search.begin(track, self._steps)
        return search

    def _complete(self, logits: NDArray[np.float32]) -> Advance:
        """A step of every search, each on its own rows."""
        parents: list[int] = []
        tokens: list[int] = []
        live: list[Track] = []
        start = 0
        for search in self._searches():
            count = search.num_live
            step = search._advance(logits[start : start + count])
            parents += [start + parent for parent in step.parents]
            tokens += step.tokens
            live += search._live if not search.finished else []
            start += count
        self._live = live
        self.finished = not live
        return Advance(parents, tokens)

    def _searches(self) -> list[Policy]:
        """Those that still run."""
        return [one.search for one in self._alternatives if one.search is not None and not one.search.finished]

    def _stop(self, reason: str) -> None:
        if not self._alternatives:
            count = self.options.num_return_sequences
            self._alternatives = [_Alternative(0.0, self._live[0], Stop(reason)) for _ in range(count)]
        for search in self._searches():
            search.stop(reason)

    def _result(self, one: _Alternative) -> Hypothesis:
        if one.search is None:
            assert one.stop is not None
            return self._hypothesis(one.track, one.logprob, *one.stop)
        (found,) = one.search.results()
        score = found.score or 0.0
        if self.options.num_beams == 1:
            length = self.prompt_length + len(found.token_ids) - one.begin
            score /= max(1, length) ** self.options.length_penalty
        return dataclasses.replace(found, score=one.logprob + score)


def _rule_out(scores: NDArray[np.float32], ends: tuple[int, ...]) -> None:
    """Rules out the end tokens in [1, V], unless nothing else is left."""
    columns = [token for token in ends if token < scores.shape[1]]
    before = scores[0, columns]
    filters.suppress(scores, columns)
    if np.isneginf(scores).all():
        scores[0, columns] = before
