"""Which spans of a context answer a question: scores from start and end logits. Pure functions, no models.

The rules are those of transformers 4's question-answering pipeline (after Chen et al. 2017, "DrQA", section 3.2):
softmax over a window's candidates, the product of a start and an end, spans that end no earlier than they begin and
are no longer than allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Answer = dict[str, Any]


class TokenSpan(NamedTuple):
    """Tokens start..end (both included) of a window."""

    start: int
    end: int
    score: float


def probabilities(logits: NDArray[np.floating[Any]], candidate: NDArray[np.bool_]) -> Floats:
    """Softmax [T] over the candidate positions; exactly 0 elsewhere."""
    masked = np.where(candidate, logits.astype(np.float64), -np.inf)
    exponentials = np.exp(masked - masked.max())
    return np.asarray(exponentials / exponentials.sum())


def window_spans(
    start_logits: NDArray[np.floating[Any]],
    end_logits: NDArray[np.floating[Any]],
    in_context: Sequence[bool],
    cls: int | None,
    *,
    top_k: int,
    max_answer_len: int,
) -> tuple[list[TokenSpan], float]:
    """(the best spans of one window, best first; the score of "no answer").

    in_context: [T], which tokens an answer may have; they follow each other. cls: the place of the token that stands
    for no answer, which takes part in the softmax; None: there is none, and "no answer" scores 0. At least one of all
    these must be there. Equal scores come in the order of their starts, then ends.
    """
    inside = np.array(in_context, bool)
    candidate = inside.copy()
    if cls is not None:
        candidate[cls] = True
    start, end = probabilities(start_logits, candidate), probabilities(end_logits, candidate)
    null = 0.0 if cls is None else float(start[cls] * end[cls])
    first, count = int(inside.argmax()), int(inside.sum())
    longest = min(max_answer_len, count)
    if not longest:
        return [], null
    ends = np.concatenate([end[first : first + count], np.zeros(longest - 1)])
    # [starts, lengths]
    scores = start[first : first + count, None] * np.lib.stride_tricks.sliding_window_view(
        ends, longest
    )  # [start, len]
    scores[np.arange(count)[:, None] + np.arange(longest) >= count] = -1.0  # would end behind the context
    flat = scores.ravel()
    order = flat.argmax(keepdims=True) if top_k == 1 else np.argsort(-flat, kind="stable")[:top_k]
    begins, lengths = np.unravel_index(order[flat[order] >= 0.0], scores.shape)
    found = [
        TokenSpan(first + int(begin), first + int(begin + length), float(scores[begin, length]))
        for begin, length in zip(begins, lengths, strict=True)
    ]
    return found, null


def character_span(
    span: TokenSpan,
    offsets: Sequence[tuple[int, int]],
    words: Sequence[int | None],
    sequence_ids: Sequence[int | None],
    align_to_words: bool,
) -> tuple[int, int]:
    """begin and end in the characters of the context: of the tokens, or of the whole words (as far as the window has
    them) that they lie in. Tokens that belong to no word keep their own places."""
    first, last = words[span.start], words[span.end]
    if not align_to_words or first is None or last is None:
        return offsets[span.start][0], offsets[span.end][1]
    sequence = sequence_ids[span.start]
    same = [at for at, own in enumerate(sequence_ids) if own == sequence]
    begin = min(offsets[at][0] for at in same if words[at] == first)
    end = max(offsets[at][1] for at in same if words[at] == last)
    return begin, end


def ranked(found: Sequence[tuple[float, int, int]], context: str, null: float | None, top_k: int) -> list[Answer]:
    """The top_k answers of all windows. Spans with the same text, letter case aside, are one answer: the scores add up
    and the first one's place counts. null: the score of no answer, None where it may not be given."""
    answers: dict[str, Answer] = {}
    for score, begin, end in found:
        text = context[begin:end]
        known = answers.setdefault(text.lower(), {"score": 0.0, "start": begin, "end": end, "answer": text})
        known["score"] += score
    every = list(answers.values())
    if null is not None:
        every.append({"score": null, "start": 0, "end": 0, "answer": ""})
    return sorted(every, key=lambda answer: -answer["score"])[:top_k]
