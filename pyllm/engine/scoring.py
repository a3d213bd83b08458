"""How likely a model finds a text: log-probability of every token, perplexity. Holds a few rows of logits at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..decode import _search
from ..errors import NumericError, PromptError
from .engine import SCORED_ROWS, Engine


@dataclass(frozen=True)
class Score:
    """Log-probabilities of one text's tokens under a model, natural logarithms.

    token_ids   the T tokens, special ones included
    logprobs    float32 [T], logprobs[t] = log p(token t | those before it). A token that nothing comes before, the
                first of a decoder-only model's text, has no probability: NaN, and it counts nowhere below. An
                encoder-decoder's first token follows the source and the decoder's start token, so it has one.
    """

    token_ids: list[int]
    logprobs: NDArray[np.float32] = field(compare=False, repr=False)

    @property
    def scored(self) -> int:
        """Tokens that have a log-probability: T, or T - 1 without anything before the first."""
        return int(np.count_nonzero(~np.isnan(self.logprobs)))

    @property
    def total(self) -> float:
        """Log-probability of the whole text, the sum over its tokens; 0 when there is none to count."""
        return float(np.nansum(self.logprobs, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Log-probability per token; NaN when there is none to count."""
        return self.total / self.scored if self.scored else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean): 1 for a text that could not be otherwise; NaN when there is no token to count."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self.mean))


def token_logprobs(logits: NDArray[np.float32], ids: Sequence[int]) -> NDArray[np.float32]:
    """log_softmax(logits)[t, ids[t]]: float32 [n] for logits float32 [n, V] with contiguous rows.

    The sums are taken in double precision row by row, without a copy of the logits. Raises NumericError when a row has
    NaN or +inf.
    """
    out = np.empty(len(logits), np.float32)
    for t, (row, token) in enumerate(zip(logits, ids, strict=True)):
        out[t] = float(row[token]) - _search.log_sum_exp(row)
        if math.isnan(out[t]):
            raise NumericError(
                f"[score] logits must be finite numbers, got NaN or infinity at row {t}; check the checkpoint for "
                "damaged weights, or load it with dtype='float32' if it overflowed"
            )
    return out


def score_rows(rows: Iterable[NDArray[np.float32]], ids: Sequence[int], *, preceded: bool = False) -> Score:
    """The score of a text from its logits, which come in pieces float32 [n, V] of consecutive positions.

    preceded    False: row t speaks of ids[t + 1], as when a decoder reads ids[:-1]. True: it speaks of ids[t], as when
                an encoder-decoder's decoder reads [start, *ids[:-1]].

    Raises PromptError without ids, NumericError for logits that are no numbers.
    """
    tokens = [int(token) for token in ids]
    if not tokens:
        raise PromptError("[score] a text needs at least one token, got none; leave empty texts out")
    out = np.full(len(tokens), np.nan, np.float32)
    at = 0 if preceded else 1
    for piece in rows:
        out[at : at + len(piece)] = token_logprobs(piece, tokens[at : at + len(piece)])
        at += len(piece)
    if at != len(tokens):
        raise ValueError(f"[score] {len(tokens)} tokens need a row of logits each, got rows up to {at}")
    return Score(tokens, out)


def score_ids(engine: Engine, ids: Sequence[int], *, chunk: int = SCORED_ROWS) -> Score:
    """The score of one text of a decoder-only model, `chunk` rows of logits at a time; it doesn't depend on `chunk`.

    Raises PromptError without ids, NumericError. As for `Engine.score`, the caller has checked that the ids are the
    model's and that ids[:-1] fits its context.
    """
    return score_rows(engine.score_rows(ids[:-1], chunk=chunk), ids)
