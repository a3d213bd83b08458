"""Filters against transformers' processors, recorded and live; the row kernels beneath against NumPy in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

from pyllm.decode import _search, filters
from pyllm.decode.chain import FilterChain
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Request
from pyllm.errors import InvalidOptionError

CASES: list[dict[str, Any]] = json.loads((FIXTURES / "filters" / "cases.json").read_text())
INF = float("inf")


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal where -inf, within float32 rounding elsewhere."""
    assert np.array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=2e-6)


def chain_for(options: dict[str, Any], prompt: list[int], vocab_size: int) -> FilterChain:
    built = GenerationOptions.build({"top_k": 0}, options)
    limit = built.length_limit(len(prompt))
    return FilterChain(Request(prompt, built, vocab_size, limit, seed=0))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[json.dumps(case["options"]) for case in CASES])
def test_recorded(index: int) -> None:
    case = CASES[index]
    with np.load(FIXTURES / "filters" / "filters.npz") as arrays:
        ids, logits, expected = arrays["ids"].tolist(), arrays["logits"], arrays[f"case_{index}"]
    chain = chain_for(case["options"], ids[0][: case["prompt_length"]], logits.shape[1])
    same(chain.apply(logits.copy(), ids), expected)


def rows(seed: int) -> tuple[np.ndarray, list[list[int]]]:
    """Logits [4, 97] with ties and tokens ruled out, and histories drawn from few tokens."""
    random = np.random.RandomState(seed)
    scores = (3 * random.standard_normal((4, 97))).astype(np.float32)
    scores[1] = np.round(scores[1])
    scores[2, random.randint(0, 97, 60)] = -INF
    scores[3] -= 8
    return scores, random.randint(0, 5, (4, 17)).tolist()


ENDS = [3, 8]
SOURCE = [3, 1, 4, 1, 0, 2, 2, 2, 4, 96]
LIVE: dict[str, tuple[Any, Any]] = {
    "RepetitionPenaltyLogitsProcessor": ((1.4,), lambda s, h: filters.repetition_penalty(s, h, 1.4)),
    "NoRepeatNGramLogitsProcessor": ((2,), lambda s, h: filters.no_repeat_ngram(s, h, 2)),
    "SequenceBiasLogitsProcessor": (
        ([[[1], 2.0], [[0, 4], -3.0], [[2, 4], 1.5], [[1, 2, 3], 9.0]],),
        lambda s, h: filters.sequence_bias(s, h, [((1,), 2.0), ((0, 4), -3.0), ((2, 4), 1.5), ((1, 2, 3), 9.0)]),
    ),
    "SuppressTokensLogitsProcessor": (([4, 96],), lambda s, h: filters.suppress(s, [4, 96])),
    "InfNanRemoveLogitsProcessor": ((), lambda s, h: filters.remove_invalid(s)),
    "ExponentialDecayLengthPenalty": (((2, 1.3), ENDS, 9), lambda s, h: filters.exponential_decay(s, 6, 1.3, ENDS)),
    "TemperatureLogitsWarper": ((0.7,), lambda s, h: filters.temperature(s, 0.7)),
    "TopKLogitsWarper": ((9,), lambda s, h: filters.top_k(s, 9)),
    "EpsilonLogitsWarper": ((0.02, -INF, 2), lambda s, h: filters.epsilon_cutoff(s, 0.02, 2)),
    "EtaLogitsWarper": ((0.05, -INF, 3), lambda s, h: filters.eta_cutoff(s, 0.05, 3)),
    "LogitNormalization": ((), lambda s, h: filters.renormalize(s)),
}
# Filters that cut a ranking: which of several equal scores goes is left open by transformers, so no ties for these.
RANKED: dict[str, tuple[Any, Any]] = {
    "TopPLogitsWarper": ((0.8, -INF, 3), lambda s, h: filters.top_p(s, 0.8, 3)),
    "MinPLogitsWarper": ((0.2, -INF, 3), lambda s, h: filters.min_p(s, 0.2, 3)),
    "TopHLogitsWarper": ((0.4,), lambda s, h: filters.top_h(s, 0.4)),
    "TypicalLogitsWarper": ((0.6, -INF, 2), lambda s, h: filters.typical_p(s, 0.6, 2)),
}


@pytest.mark.parametrize("size", [1, 2, 3, 12, 30])
def test_live_encoder_filters(size: int) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    source, penalty = torch.tensor([SOURCE]), [1.4, 0.6, 2.0, 1e-3, 7.0][size % 5]
    repeat = processors.EncoderRepetitionPenaltyLogitsProcessor(penalty, source)
    ngrams = processors.EncoderNoRepeatNGramLogitsProcessor(size, source)
    for seed in range(10):
        scores, histories = rows(seed)
        for known in (histories, [history[:1] for history in histories]):
            ids = torch.tensor(known)
            expected = repeat(ids, torch.tensor(scores)).numpy()
            same(filters.encoder_repetition_penalty(scores.copy(), SOURCE, penalty), expected)
            expected = ngrams(ids, torch.tensor(scores)).numpy()
            table = filters.source_ngrams(SOURCE, size, 97)
            same(filters.encoder_no_repeat_ngram(scores.copy(), known, table, size), expected)


def test_encoder_filters_look_at_the_source_else_the_prompt() -> None:
    scores = np.arange(12, dtype=np.float32)[None] - 4
    options = {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0}
    built = GenerationOptions.build({}, options)
    for source, banned in ((None, [1, 2]), ([7, 3, 40], [3, 7]), ([], [])):  # 40: a token that only the encoder knows
        chain = FilterChain(Request([1, 2], built, 12, 22, seed=0, source_ids=source))
        left = chain.apply(scores.copy(), [[1, 2, 5]])
        assert np.flatnonzero(np.isneginf(left[0])).tolist() == banned
    rewarded = filters.encoder_repetition_penalty(scores.copy(), [7, 3, 40], 2.0)
    assert (rewarded[0, 7], rewarded[0, 3]) == (6, -0.5)


@pytest.mark.parametrize("name", [*LIVE, *RANKED])
def test_live(name: str) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    arguments, ours = (LIVE | RANKED)[name]
    for seed in range(10):
        scores, histories = rows(seed)
        if name in RANKED:
            scores[1] = np.random.RandomState(seed).permutation(97) / 9
        theirs = getattr(processors, name)(*arguments)
        expected = theirs(torch.tensor(histories), torch.tensor(scores)).numpy()
        same(ours(scores.copy(), histories), expected)
        apart = np.full((4, 112), 99, np.float32)  # rows as a runner may pad them
        apart[:, :97] = scores
        same(ours(apart[:, :97], histories), expected)
        assert np.all(apart[:, 97:] == 99)


def test_prefix_allowed_and_its_mistakes() -> None:
    scores, histories = rows(0)
    seen: list[tuple[int, list[int]]] = []

    def allowed(batch_id: int, ids: np.ndarray) -> list[int]:
        seen.append((batch_id, ids.tolist()))
        return [5, int(ids[-1])]

    left = filters.prefix_allowed(scores.copy(), histories, allowed, 7)
    assert seen == [(7, history) for history in histories]
    for row, before, history in zip(left, scores, histories, strict=True):
        assert set(np.flatnonzero(row > -INF)) <= {5, history[-1]}
        assert row[5] == before[5]
    closed = np.full((1, 9), -INF, np.float32)
    assert filters.prefix_allowed(closed, [[1]], lambda *_: [4], 0)[0, 4] == 0
    for answer in ([], [97], [-1]):
        with pytest.raises(InvalidOptionError, match="prefix_allowed_tokens_fn must return"):
            filters.prefix_allowed(scores.copy(), histories, lambda *_, a=answer: a, 0)


def test_custom_processor_gets_and_returns_arrays() -> None:
    scores, histories = rows(0)

    def lift(input_ids: np.ndarray, s: np.ndarray) -> np.ndarray:
        assert (input_ids.dtype, input_ids.shape, s.dtype) == (np.int64, (4, 17), np.float32)
        return s.astype(np.float64) + 1

    lifted = filters.custom(scores.copy(), histories, lift)
    assert lifted.dtype == np.float32
    np.testing.assert_array_equal(lifted, scores + 1)
    with pytest.raises(InvalidOptionError, match="return scores of shape"):
        filters.custom(scores, histories, lambda ids, s: s[0])


def test_order_of_the_chain() -> None:
    """Custom processors come after all plain filters and before the sampling ones, renormalisation last."""
    seen: list[np.ndarray] = []
    options = {"do_sample": True, "temperature": 0.5, "top_k": 3, "suppress_tokens": [4], "renormalize_logits": True}
    options["logits_processor"] = lambda ids, s: seen.append(s.copy()) or s
    scores, histories = rows(0)
    result = chain_for(options, histories[0], 97).apply(scores[:1].copy(), histories[:1])
    assert seen[0][0, 4] == -INF
    assert np.isfinite(seen[0]).sum() == 96
    assert np.isfinite(result).sum() == 3
    assert np.exp(result.astype(float)).sum() == pytest.approx(1, abs=1e-6)


@pytest.fixture(params=range(_search.num_kernels()))
def kernels(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each instruction set of this machine in turn."""
    _search.use_kernels(request.param)
    yield request.param
    _search.use_kernels(_search.num_kernels() - 1)


SIZES = [1, 2, 15, 16, 17, 511, 512, 513, 1100, 50257]


@pytest.mark.parametrize("size", SIZES)
def test_row_kernels(kernels: int, size: int) -> None:
    random = np.random.RandomState(size)
    row = (4 * random.standard_normal(size)).astype(np.float32)
    exact = np.log(np.sum(np.exp(row.astype(np.float64))))
    assert _search.log_sum_exp(row) == pytest.approx(exact, abs=1e-6)
    assert _search.argmax(row) == np.argmax(row)
    coarse = np.round(row)  # ties: the lowest id first
    order = np.lexsort((np.arange(size), -coarse))
    for k in {1, min(7, size), min(120, size), size}:
        values, ids = _search.top_k(coarse, k)
        assert ids == order[:k].tolist()
        assert values == coarse[order[:k]].tolist()
    two = np.stack([row, row])
    assert _search.log_softmax_(two)
    np.testing.assert_allclose(two[1], row - exact, rtol=0, atol=2e-6)


def test_row_kernels_with_fused_multiply_add_give_the_same_bits() -> None:
    row = (4 * np.random.RandomState(0).standard_normal(50257)).astype(np.float32)
    sums = []
    for index in range(_search.num_kernels()):
        _search.use_kernels(index)
        sums.append(_search.log_sum_exp(row))
    assert len(set(sums[1:])) <= 1
    assert sums[0] == pytest.approx(sums[-1], abs=1e-6)


@pytest.mark.parametrize("at", [0, 20, 600, 1099])
def test_odd_values(kernels: int, at: int) -> None:
    row = np.random.RandomState(1).standard_normal(1100).astype(np.float32)
    for value in (np.nan, np.inf):
        odd = row.copy()
        odd[at] = value
        assert _search.argmax(odd) == (-1 if np.isnan(value) else at)
        assert np.isnan(_search.log_sum_exp(odd))
        assert not _search.log_softmax_(odd[None].copy())
        assert _search.best_continuations(odd[None], [0.0], 2, True) is None
        assert _search.sample(odd[None], 1.0, 0, 1.0, 0.0, [0.5]) == [-1]
    odd = row.copy()
    odd[at] = -np.inf
    assert _search.log_sum_exp(odd) == pytest.approx(np.log(np.sum(np.exp(np.delete(row, at).astype(float)))), abs=1e-6)
    nothing = np.full(1100, -np.inf, np.float32)
    assert _search.log_sum_exp(nothing) == -np.inf
    assert (_search.argmax(nothing), _search.sample(nothing[None], 1.0, 0, 1.0, 0.0, [0.5])) == (0, [-1])


def test_continuations() -> None:
    random = np.random.RandomState(3)
    logits = (3 * random.standard_normal((5, 700))).astype(np.float32)
    running = [0.0, -1.5, -0.2, -40.0, -1e9]
    exact = logits - np.log(np.sum(np.exp(logits.astype(float)), axis=1, keepdims=True)) + np.array(running)[:, None]
    best = np.argsort(-exact.reshape(-1))[:12]
    scores, parents, tokens = zip(*_search.best_continuations(logits, running, 12, True), strict=True)
    assert list(zip(parents, tokens, strict=True)) == [divmod(int(i), 700) for i in best]
    np.testing.assert_allclose(scores, exact.reshape(-1)[best], atol=1e-5)


def test_random_numbers() -> None:
    """Philox4x32-10's published answer for counter 0 and key 0 (two of its words make the number); then others."""
    assert _search.uniform(0, 0, 0, 0) == ((0xE169C58D << 32 | 0x6627E8D5) >> 11) * 2.0**-53
    numbers = {_search.uniform(1, a, b, c, d) for a in range(5) for b in range(5) for c in range(5) for d in range(5)}
    assert len(numbers) == 625
    assert np.mean(list(numbers)) == pytest.approx(0.5, abs=0.05)


def test_answers_of_callables() -> None:
    scores, histories = np.zeros((1, 8), np.float32), [[1, 2]]
    kept = filters.prefix_allowed(scores.copy(), histories, lambda *_: {5, 3}, 0)
    assert np.flatnonzero(np.isfinite(kept[0])).tolist() == [3, 5]
    for answer in (None, "ab", [5.0], [True], [8], []):
        with pytest.raises(InvalidOptionError, match="prefix_allowed_tokens_fn must return token ids"):
            filters.prefix_allowed(scores.copy(), histories, lambda *_, answer=answer: answer, 0)
    frozen = np.broadcast_to(np.float32(0), (1, 8))
    assert filters.custom(scores.copy(), histories, lambda *_: frozen).flags.writeable
    raised = filters.exponential_decay(np.ones((1, 8), np.float32), 5, 1e300, [2])
    assert raised[0, 2] == np.inf
