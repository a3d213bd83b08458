"""Live sequences of a search: their tokens, what is kept beside each token, and the results they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _search
from .options import GenerationOptions

Rows = NDArray[np.float32]


class Stop(NamedTuple):
    """Why a sequence ends: a Hypothesis' finish_reason and the stop string that was met, if one was."""

    reason: str
    string: str | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One returned sequence.

    token_ids      the new tokens only, the end token included when one was generated (as Hugging Face returns them)
    score          beam policies: sum of log-probabilities / generated length ** length_penalty, Hugging Face's
                   `sequences_scores` (plus the coverage term when asked for); greedy and sampling: sum of the chosen
                   tokens' log-probabilities under the filtered scores when `output_scores` was asked for, else None;
                   alternatives: see alternatives.py
    finish_reason  "stop" (end token), "length", "stop_string", "time", "criteria" (a stopping_criteria callable),
                   or the reason given to `Policy.stop`
    stop_string    the string that was met, when finish_reason is "stop_string"
    scores         float32 [steps, V], the filtered scores along this sequence when `output_scores`, else None;
                   beams: filtered log-probabilities without the sequence's own sum, as in Hugging Face
    logits         float32 [steps, V], the untouched logits along this sequence when `output_logits`, else None
    logprobs       float32 [steps], each token's log-probability under the untouched logits when `logprobs`, else None
    top_logprobs   (ids int32 [steps, k], log-probabilities float32 [steps, k]) of the k = `logprobs` most likely
                   tokens of each step, best first, lower ids first among equals; None unless k > 0. Under
                   remove_invalid_values a row with NaN has NaN log-probabilities, and ids of -1 where numbers ran out
    attention      float32 [steps, S], row t the attention to the source's S positions that token t was chosen with
                   (of the last decoder layer, its first head) when `output_cross_attentions`, else None
    """

    token_ids: list[int]
    score: float | None
    finish_reason: str
    stop_string: str | None = None
    scores: Rows | None = None
    logits: Rows | None = None
    logprobs: NDArray[np.float32] | None = None
    top_logprobs: tuple[NDArray[np.int32], Rows] | None = None
    attention: Rows | None = None


class Distribution:
    """A row of untouched logits [V] as log-probabilities; `best`: ids and log-probabilities of the k largest."""

    def __init__(self, row: NDArray[np.float32], k: int) -> None:
        self._row = row.copy()  # filters overwrite the policy's
        self._sum = _search.log_sum_exp(row)
        values, ids = _search.top_k(row, k) if k else ([], [])
        missing = k - len(ids)  # NaN has no rank
        self.best = ids + [-1] * missing, [value - self._sum for value in values] + [np.nan] * missing

    def logprob(self, token: int) -> float:
        """Log-probability of `token`; NaN when the row has no softmax."""
        return float(self._row[token]) - self._sum


@dataclass
class Kept:
    """What results are to show of one sequence, an entry for each new token in every list that was asked for.

    scores, logits, attention   rows float32 [V], [V], [S]
    logprobs, best              the token's log-probability; ids and log-probabilities of the most likely ones
    drawn_from                  where the next token's log-probability is to be found
    """

    scores: list[Rows] = field(default_factory=list)
    logits: list[Rows] = field(default_factory=list)
    attention: list[Rows] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[tuple[list[int], list[float]]] = field(default_factory=list)
    drawn_from: Distribution | None = None

    def take(self, token: int) -> None:
        """Notes the token that was chosen."""
        if self.drawn_from is not None:
            self.logprobs.append(self.drawn_from.logprob(token))
            self.best.append(self.drawn_from.best)
            self.drawn_from = None  # lets go of its row

    def fork(self) -> Kept:
        """A copy that can grow by itself; rows are shared."""
        return Kept(
            list(self.scores),
            list(self.logits),
            list(self.attention),
            list(self.logprobs),
            list(self.best),
            self.drawn_from,
        )


@dataclass
class Track:
    """One live sequence: its tokens (prompt included), the sum of its tokens' log-probabilities where a policy counts
    it, and what is kept for the result, None when nothing is."""

    tokens: list[int]
    logprob: float = 0.0
    kept: Kept | None = None

    def take(self, token: int) -> None:
        """The sequence grows by a token."""
        self.tokens.append(token)
        if self.kept is not None:
            self.kept.take(token)

    def keep(self) -> Kept:
        """What is kept; only where something is."""
        assert self.kept is not None
        return self.kept

    def fork(self) -> Track:
        """A copy that can grow by itself."""
        return Track(list(self.tokens), self.logprob, None if self.kept is None else self.kept.fork())


def keeps_anything(options: GenerationOptions, needs_attention: bool) -> bool:
    """Whether tracks have to keep more than tokens."""
    return options.output_scores or options.output_logits or options.logprobs is not None or needs_attention


def hypothesis(
    track: Track,
    prompt_length: int,
    options: GenerationOptions,
    widths: tuple[int, int],
    score: float | None,
    stop: Stop,
) -> Hypothesis:
    """The result a track becomes. widths: (V, S), of rows should there be none."""
    token_ids = track.tokens[prompt_length:]
    kept = track.kept
    if kept is None:
        return Hypothesis(token_ids, score, stop.reason, stop.string)
    asked = options.logprobs
    return Hypothesis(
        token_ids,
        score,
        stop.reason,
        stop.string,
        scores=_stacked(kept.scores, widths[0]) if options.output_scores else None,
        logits=_stacked(kept.logits, widths[0]) if options.output_logits else None,
        logprobs=None if asked is None else np.array(kept.logprobs, np.float32),
        top_logprobs=_best(kept.best, asked) if asked else None,
        attention=_stacked(kept.attention, widths[1]) if options.output_cross_attentions else None,
    )


def _stacked(rows: list[Rows], width: int) -> Rows:
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def _best(steps: list[tuple[list[int], list[float]]], k: int) -> tuple[NDArray[np.int32], Rows]:
    ids = np.array([ids for ids, _ in steps], np.int32).reshape(-1, k)
    return ids, np.array([values for _, values in steps], np.float32).reshape(-1, k)
