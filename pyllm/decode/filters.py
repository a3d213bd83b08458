"""Filters: functions on rows of scores with transformers' exact meaning. Which apply, and in what order, is chain.py's.

Every function takes `scores` float32 [n, V] with contiguous rows (logits, or log-probabilities for beams), overwrites
it and returns it. `histories` are the n token sequences so far, prompt included. A token is ruled out by -inf. No
function keeps state. Source of all rules: transformers' generation/logits_process.py; classes are named where names
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidOptionError
from . import _search

Scores = NDArray[np.float32]
Histories = Sequence[Sequence[int]]
_NEVER = np.float32(-np.inf)


def repetition_penalty(scores: Scores, histories: Histories, penalty: float) -> Scores:
    """Scores of tokens that occurred: divided by `penalty` where positive, else multiplied; each token once."""
    for row, history in zip(scores, histories, strict=True):
        _search.penalise_(row, history, penalty)
    return scores


def encoder_repetition_penalty(scores: Scores, source: Sequence[int], penalty: float) -> Scores:
    """Scores of the source's tokens: multiplied by `penalty` where positive, else divided; above 1 they gain
    (EncoderRepetitionPenaltyLogitsProcessor)."""
    for row in scores:
        _search.penalise_(row, source, 1 / penalty)
    return scores


def no_repeat_ngram(scores: Scores, histories: Histories, size: int) -> Scores:
    """Rules out each token that would complete an n-gram of `size` tokens that occurred already."""
    for row, history in zip(scores, histories, strict=True):
        banned = completions(list(history), size)
        if banned:
            row[banned] = _NEVER
    return scores


def source_ngrams(source: Sequence[int], size: int, vocab_size: int) -> dict[tuple[int, ...], list[int]]:
    """What follows each run of size - 1 tokens of the source; tokens that only an encoder knows are left out."""
    follows: dict[tuple[int, ...], list[int]] = {}
    for end in range(size - 1, len(source)):
        if source[end] < vocab_size:
            follows.setdefault(tuple(source[end + 1 - size : end]), []).append(source[end])
    return follows


def encoder_no_repeat_ngram(
    scores: Scores, histories: Histories, ngrams: Mapping[tuple[int, ...], list[int]], size: int
) -> Scores:
    """Rules out each token that would complete an n-gram of the source, whose `ngrams` are given
    (EncoderNoRepeatNGramLogitsProcessor)."""
    for row, history in zip(scores, histories, strict=True):
        if banned := source_completions(history, ngrams, size):
            row[banned] = _NEVER
    return scores


def source_completions(history: Sequence[int], ngrams: Mapping[tuple[int, ...], list[int]], size: int) -> list[int]:
    """Tokens that followed the last size - 1 tokens in the source."""
    return ngrams.get(tuple(history[len(history) + 1 - size :]), []) if len(history) >= size - 1 else []


def completions(history: list[int], size: int) -> list[int]:
    """Tokens that followed an earlier occurrence of the last size - 1 tokens."""
    if len(history) < size:
        return []
    if size == 1:
        return history
    prefix, last = history[1 - size :], history[-1]
    banned: list[int] = []
    at = size - 2  # where the prefix could end for the first time
    while True:
        try:
            at = history.index(last, at, len(history) - 1)
        except ValueError:
            return banned
        if history[at + 2 - size : at + 1] == prefix:
            banned.append(history[at + 1])
        at += 1


def sequence_bias(scores: Scores, histories: Histories, biases: Sequence[tuple[tuple[int, ...], float]]) -> Scores:
    """Adds a bias to the last token of each sequence whose other tokens the history ends with; biases of several such
    sequences add up. `bad_words_ids` are biases of -inf (NoBadWordsLogitsProcessor)."""
    for row, history in zip(scores, histories, strict=True):
        total = biases_after(history, biases)
        if total:
            row[list(total)] += np.fromiter(total.values(), np.float32)
    return scores


def biases_after(history: Sequence[int], biases: Sequence[tuple[tuple[int, ...], float]]) -> dict[int, np.float32]:
    """What sequence_bias adds to which tokens."""
    total: dict[int, np.float32] = {}
    for tokens, bias in biases:
        before = len(tokens) - 1
        if before == 0 or (before <= len(history) and tuple(history[-before:]) == tokens[:-1]):
            total[tokens[-1]] = total.get(tokens[-1], np.float32(0)) + np.float32(bias)
    return total


def suppress(scores: Scores, tokens: Sequence[int]) -> Scores:
    """Rules out `tokens`; ids past the vocabulary have no effect."""
    scores[:, [token for token in tokens if token < scores.shape[1]]] = _NEVER
    return scores


def force(scores: Scores, tokens: Sequence[int]) -> Scores:
    """Leaves nothing but `tokens`, each with score 0 (ForcedBOS-, ForcedEOSTokenLogitsProcessor)."""
    scores[:] = _NEVER
    scores[:, list(tokens)] = 0
    return scores


def prefix_allowed(
    scores: Scores, histories: Histories, allowed: Callable[[int, NDArray[np.int64]], Any], batch_id: int
) -> Scores:
    """Leaves the tokens that allowed(batch_id, int64 [len]) returns for each history. When every row is left with
    nothing but -inf, the allowed tokens get score 0 (PrefixConstrainedLogitsProcessor). Raises InvalidOptionError for
    an empty or impossible answer."""
    mask = np.full_like(scores, _NEVER)
    for row, history in zip(mask, histories, strict=True):
        answer = allowed(batch_id, np.array(history, np.int64))
        tokens = np.asarray(sorted(answer) if isinstance(answer, (set, frozenset)) else answer).reshape(-1)
        if tokens.dtype.kind not in "iu" or not tokens.size or tokens.min() < 0 or tokens.max() >= scores.shape[1]:
            raise InvalidOptionError(
                f"[generate] prefix_allowed_tokens_fn must return token ids in [0, {scores.shape[1]}), at least one, "
                f"got {tokens.tolist()[:10]} for prompt {batch_id}; return the end token where nothing else may follow"
            )
        row[tokens] = 0
    scores += mask
    if np.all(scores.max(axis=1) == _NEVER):
        scores[:] = mask
    return scores


def remove_invalid(scores: Scores) -> Scores:
    """NaN becomes 0, the infinities the largest finite values (InfNanRemoveLogitsProcessor)."""
    np.nan_to_num(scores, copy=False, nan=0.0)
    return scores


def exponential_decay(scores: Scores, steps: int, factor: float, ends: Sequence[int]) -> Scores:
    """Raises the end tokens' scores `steps` tokens after the start of regulation (ExponentialDecayLengthPenalty)."""
    if steps > 0:
        columns = list(ends)
        values = scores[:, columns]
        size = np.abs(np.where(np.isfinite(values), values, 0))
        with np.errstate(over="ignore"):
            scores[:, columns] = values + size * np.float32(np.power(np.float64(factor), steps) - 1)
    return scores


def diversity(scores: Scores, chosen: Sequence[int], penalty: float) -> Scores:
    """Lowers each token by `penalty` times how often earlier groups chose it in this step (Hamming diversity)."""
    if chosen:
        tokens, counts = np.unique(np.asarray(chosen, np.int64), return_counts=True)
        inside = tokens < scores.shape[1]
        scores[:, tokens[inside]] -= (penalty * counts[inside]).astype(np.float32)
    return scores


def temperature(scores: Scores, value: float) -> Scores:
    """Divides by `value` > 0."""
    scores /= np.float32(value)
    return scores


def top_k(scores: Scores, k: int) -> Scores:
    """Leaves the k largest and whatever equals the k-th."""
    if k < scores.shape[1]:
        _search.cut_top_k_(scores, k)
    return scores


def top_p(scores: Scores, p: float, least: int = 1) -> Scores:
    """Leaves the most probable tokens up to and including the one that brings their probability to p, at least `least`
    of them; among equals the lower id stays first."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        before = np.cumsum(probabilities) - probabilities
        drop = before >= p
        drop[:least] = False
        row[ids[drop]] = _NEVER
    return scores


def min_p(scores: Scores, p: float, least: int = 1) -> Scores:
    """Leaves tokens with at least p times the probability of the best, at least `least` of them."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        drop = probabilities < p * probabilities[0]
        drop[:least] = False
        row[ids[drop]] = _NEVER
    return scores


def typical_p(scores: Scores, p: float, least: int = 1) -> Scores:
    """Leaves the tokens whose surprise is nearest the entropy, together of probability p (TypicalLogitsWarper)."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        surprise = -np.log(np.maximum(probabilities, 1e-300))
        distance = np.abs(surprise - np.sum(probabilities * surprise))
        order = np.argsort(distance, kind="stable")
        reached = np.cumsum(probabilities[order])
        last = min(int(np.sum(reached < p)), len(order) - 1)
        drop = distance[order] > distance[order][last]
        drop[:least] = False
        row[ids[order[drop]]] = _NEVER
    return scores


def epsilon_cutoff(scores: Scores, epsilon: float, least: int = 1) -> Scores:
    """Leaves tokens of probability at least epsilon, and the `least` best."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        _cut(row, ids, probabilities, epsilon, least)
    return scores


def eta_cutoff(scores: Scores, epsilon: float, least: int = 1) -> Scores:
    """As epsilon_cutoff with the bound min(epsilon, sqrt(epsilon) * exp(-entropy))."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        entropy = -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)))
        _cut(row, ids, probabilities, min(epsilon, epsilon**0.5 * np.exp(-entropy)), least)
    return scores


def top_h(scores: Scores, share: float, most: int = 100) -> Scores:
    """Leaves the best tokens (of the `most` best) as long as their part of the entropy is at most `share` of it."""
    for row in scores:
        ids, probabilities = _by_probability(row)
        best = probabilities[:most] / np.sum(probabilities[:most])
        terms = -best * np.log(np.maximum(best, 1e-300))
        keep = np.cumsum(terms) <= share * np.sum(terms)
        keep[0] = True
        row[ids[most:]] = _NEVER
        row[ids[:most][~keep]] = _NEVER
    return scores


def renormalize(scores: Scores) -> Scores:
    """Log-probabilities (LogitNormalization)."""
    _search.log_softmax_(scores)
    return scores


def custom(scores: Scores, histories: Histories, function: Callable[..., Any]) -> Scores:
    """A caller's processor, called as transformers does: function(int64 [n, len], float32 [n, V]) -> [n, V]."""
    result = np.asarray(function(np.array(histories, np.int64), scores))
    if result.shape != scores.shape:
        raise InvalidOptionError(
            f"[generate] a logits_processor must return scores of shape {scores.shape}, got {result.shape}; "
            "change the array it was given and return it"
        )
    return np.require(result, np.float32, ["C", "W"])  # other libraries' arrays may be read-only; sampling writes


def _by_probability(row: Scores) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Ids of the tokens not ruled out, best first (lower ids first among equals), and their probabilities."""
    ids = np.flatnonzero(row > _NEVER)
    if not len(ids):
        return ids, np.ones(1)[:0]
    ids = ids[np.argsort(-row[ids], kind="stable")]
    weights = np.exp(row[ids].astype(np.float64) - np.float64(row[ids[0]]))
    return ids, weights / np.sum(weights)


def _cut(row: Scores, ids: NDArray[np.intp], probabilities: NDArray[np.float64], bound: float, least: int) -> None:
    """Rules out what is below the bound, except what equals or beats the `least`-th best."""
    if len(ids):
        drop = (probabilities < bound) & (row[ids] < row[ids[min(least, len(ids)) - 1]])
        row[ids[drop]] = _NEVER
