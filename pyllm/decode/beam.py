"""Beam search and beam sampling, as transformers 5 does them (GenerationMixin._beam_search), for one prompt.

Each step takes the best (end tokens + 1) * num_beams continuations of all beams, at least 2 * num_beams. Those among
the best num_beams that end become finished hypotheses, the best num_beams that do not end go on. Scores are sums of
log-probabilities; finished ones are divided by generated length ** length_penalty. Ties go to the earlier beam, then
the lower token id (torch.topk leaves their order open).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..program.batch import Best
from . import _search
from .chain import FilterChain
from .policy import Hypothesis, Policy, Request
from .steps import Advance, Ranking
from .stopping import Stopping
from .track import Stop, Track

OUT = -1.0e9  # transformers' "never": added to what must not win, still above -inf


class Continuation(NamedTuple):
    """Live sequence `parent` followed by `token`; `score` is the sum of log-probabilities."""

    score: float
    parent: int
    token: int


def best_continuations(
    rows: NDArray[np.float32],
    running: list[float],
    count: int,
    normalise: bool,
    blocks: NDArray[np.float32] | None = None,
) -> list[Continuation] | None:
    """The `count` best continuations, best first; None when a row holds NaN. rows: float32 [n, V], logits if
    `normalise`, else log-probabilities; blocks: their summary, if there is one.

    The single row of a prompt stands for len(running) equal beams of which the first alone counts. When it has too few
    tokens left (tiny vocabulary, strict filters), the others come in at their score of -1e9, as in transformers.
    """
    beams = len(running)
    found = _search.best_continuations(rows, running[: len(rows)], count, normalise, blocks)
    if found is not None and len(rows) < beams and _too_few(found, count):
        found = _search.best_continuations(np.repeat(rows, beams, axis=0), running, count, normalise)
    return None if found is None else [Continuation._make(one) for one in found]


def merged(values: NDArray[np.float32], ids: NDArray[np.int32], running: list[float], count: int) -> list[Continuation]:
    """The best of all rows' best [n, k], each row's best first (ids of -1: none): by score, then by row and id."""
    scores = (values + np.array(running, np.float32)[:, None]).reshape(-1)
    there = np.flatnonzero(ids.reshape(-1) >= 0)
    order = there[np.argsort(-scores[there], kind="stable")[:count]]
    found = scores[order].tolist(), (order // values.shape[1]).tolist(), ids.reshape(-1)[order].tolist()
    return [Continuation(*one) for one in zip(*found, strict=True)]


def _too_few(found: Sequence[tuple[float, int, int]], count: int) -> bool:
    return len(found) < count or found[-1][0] == -np.inf


def grown(live: Sequence[Track], going: Sequence[Continuation]) -> list[Track]:
    """The sequences that go on. The last continuation of each takes it over, the others get copies."""
    at = [min(one.parent, len(live) - 1) for one in going]  # in the first step the copies of the prompt are one
    heirs = {parent: i for i, parent in enumerate(at)}
    tracks = [live[parent] if heirs[parent] == i else live[parent].fork() for i, parent in enumerate(at)]
    for track, one in zip(tracks, going, strict=True):
        track.take(one.token)
    return tracks


def ended(live: Sequence[Track], one: Continuation) -> Track:
    """A copy of the continued sequence, with its token."""
    track = live[min(one.parent, len(live) - 1)].fork()
    track.take(one.token)
    return track


def coverage(attention: Sequence[NDArray[np.float32]]) -> float:
    """Sum over the source's positions of log(min(attention they got, 1)): Wu et al. 2016 (arXiv:1609.08144), eq. 14.

    attention: float32 [S], one for each generated token, the end token's included. As in CTranslate2, a position that
    got none at all (its attention underflowed) is left out instead of making the sum -inf.
    """
    got = np.stack(attention).sum(axis=0, dtype=np.float64)
    return float(np.sum(np.log(np.minimum(got[got > 0], 1.0))))


class ScoredPolicy(Policy):
    """A search whose results carry scores that count their length and, when asked for, their coverage of the source."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._counted_from = self.prompt_length  # position of the first token that length_penalty counts

    def begin(self, track: Track, steps: Sequence[NDArray[np.float32]]) -> None:
        super().begin(track, steps)
        self._counted_from = len(track.tokens)

    def _normalised(self, total: float, length: int) -> float:
        return total / math.pow(max(1, length - self._counted_from), self.options.length_penalty)

    def _final(self, total: float, track: Track) -> float:
        """Score of a sequence that ends, whose log-probabilities have the sum `total`.

        The coverage term comes in here and nowhere else, as in CTranslate2: it ranks sequences that have ended, while
        live ones compete by their sums. It is never positive, so it can't end a search too early either.
        """
        score = self._normalised(total, len(track.tokens))
        if self.options.coverage_penalty and track.keep().attention:
            score += self.options.coverage_penalty * coverage(track.keep().attention)
        return score


class BeamPolicy(ScoredPolicy):
    """num_beams live sequences after the first step."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        o = request.options
        self._chain = FilterChain(request)
        self._stopping = Stopping(request)
        self._count = max(2, 1 + len(o.eos_token_id)) * o.num_beams
        self._running = [0.0] + [OUT] * (o.num_beams - 1)
        self._done: list[tuple[float, Track, Stop]] = []  # best first
        self._step = 0
        self._plain = not self._chain and not o.output_scores and not o.do_sample
        self._is_told = self._chain.tells and not o.do_sample and not self._reads_logits

    def results(self) -> list[Hypothesis]:
        best = self._done[: self.options.num_return_sequences]
        return [self._hypothesis(track, score, *stop) for score, track, stop in best]

    @property
    def summary_scale(self) -> float | None:
        return 1.0 if self._plain else None

    @property
    def ranking(self) -> Ranking | None:
        if not self._is_told:
            return None
        changes = None if self._plain else [self._chain.changes(track.tokens, True) for track in self._live]
        return Ranking(self._count, changes)

    def rank(self, best: Best) -> Advance:
        if np.isnan(best.sums).any():
            raise self._not_a_number()
        rows, beams = len(best.sums), len(self._running)
        values, ids = best.values[:, : self._count], best.ids[:, : self._count]
        found = merged(values, ids, self._running[:rows], self._count)
        if rows < beams and _too_few(found, self._count):  # as in best_continuations
            found = merged(np.repeat(values, beams, axis=0), np.repeat(ids, beams, axis=0), self._running, self._count)
        return self._grow(found, rows)

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        return self._grow(self._continuations(logits, blocks), len(logits))

    def _grow(self, found: list[Continuation], rows: int) -> Advance:
        self._step += 1
        length = len(self._live[0].tokens) + 1
        stops = self._stops(found, length)
        going, self._running = self._going(found, stops)
        self._finish(found, stops)
        self._live = grown(self._live, going)
        last = rows - 1
        parents = [min(one.parent, last) for one in going]
        self.finished = all(stops) or self._is_settled(length)
        if self.finished:
            self._fill(Stop("length"))
            return Advance([], [])
        return Advance(parents, [one.token for one in going])

    def _going(self, found: list[Continuation], stops: list[Stop | None]) -> tuple[list[Continuation], list[float]]:
        """What goes on, with its scores: the best that do not end, the others only where there are too few."""
        count = self.options.num_beams
        if not any(stops) and not self.options.do_sample:
            return found[:count], [one.score for one in found[:count]]
        ranked = [(one.score + OUT if stop else one.score, one) for one, stop in zip(found, stops, strict=True)]
        ranked.sort(key=lambda item: -item[0])  # sampled ones come in the order drawn
        del ranked[count:]
        return [one for _, one in ranked], [score for score, _ in ranked]

    def _continuations(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None) -> list[Continuation]:
        scores = logits
        if not self._plain:
            histories = [track.tokens for track in self._live]
            if not _search.log_softmax_(logits):
                self._mark_invalid(logits)
            scores = self._chain.apply(logits, histories)
            self._keep_scores(self._live, scores)
        if self.options.do_sample:
            found = self._drawn(scores)
        else:
            found = best_continuations(scores, self._running, self._count, self._plain, blocks if self._plain else None)
        if found is None:
            raise self._not_a_number()
        return found

    def _mark_invalid(self, logits: NDArray[np.float32]) -> None:
        """Rows without a softmax: an error, or all NaN for remove_invalid_values to take care of."""
        if not self.options.remove_invalid_values:
            raise self._not_a_number()
        bad = np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1)
        logits[bad] = np.nan

    def _drawn(self, scores: NDArray[np.float32]) -> list[Continuation] | None:
        """As many continuations, drawn one after another without replacement from the softmax of their sums."""
        sums = (scores + np.array(self._running[: len(scores)], np.float32)[:, None]).reshape(-1)
        count = min(self._count, len(sums))
        uniforms = [_search.uniform(self.seed, self.request.seed_index, 0, self._step, i) for i in range(count)]
        flat = _search.draw_without_replacement(sums, uniforms)
        if flat is None:
            return None
        vocab_size = scores.shape[1]
        return [Continuation(float(sums[i]), i // vocab_size, i % vocab_size) for i in flat]

    def _stops(self, found: list[Continuation], length: int) -> list[Stop | None]:
        stops = [self._stopping.at_end_token(one.token) for one in found]
        if self._stopping.reads_text:
            histories = [ended(self._live, one).tokens for one in found]
            in_text = self._stopping.in_text(histories, self._scores_so_far())
            stops = [ended or read for ended, read in zip(stops, in_text, strict=True)]
        over = self._stopping.for_all(length)
        return [stop or over for stop in stops]

    def _finish(self, found: list[Continuation], stops: list[Stop | None]) -> None:
        """Takes the ending ones among the best num_beams into the finished, of which the best num_beams stay."""
        for one, stop in zip(found[: self.options.num_beams], stops, strict=False):
            if stop is not None:
                track = ended(self._live, one)
                self._done.append((self._final(one.score, track), track, stop))
        self._done.sort(key=lambda item: -item[0])
        del self._done[self.options.num_beams :]

    def _is_settled(self, length: int) -> bool:
        """Whether the live beams can, or may, no longer improve the finished ones: the rules of early_stopping."""
        o = self.options
        full = len(self._done) == o.num_beams
        if full and o.early_stopping is True:
            return True
        longest = self.max_length if o.early_stopping == "never" and o.length_penalty > 0 else length
        hoped = self._normalised(self._running[0], longest)
        return hoped <= (self._done[-1][0] if full else OUT)

    def _fill(self, stop: Stop) -> None:
        """Fewer finished than asked for (interrupted, or nothing left to search): the best live ones make up for it."""
        missing = self.options.num_return_sequences - len(self._done)
        for track, score in list(zip(self._live, self._running, strict=False))[: max(0, missing)]:
            self._done.append((self._final(score, track), track, stop))

    def _stop(self, reason: str) -> None:
        if self._step == 0:
            self._live = [self._live[0].fork() for _ in self._running]
        for track, score in zip(self._live, self._running, strict=True):
            self._done.append((self._final(score, track), track, Stop(reason)))
        self._done.sort(key=lambda item: -item[0])
