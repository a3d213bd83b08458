"""Scores of texts: log-probabilities against float64, whatever the pieces; perplexity; mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine_doubles import DoubleRunner
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import make_policy
from pyllm.engine.engine import Engine
from pyllm.engine.scoring import Score, score_ids, score_rows, token_logprobs
from pyllm.errors import NumericError, PromptError


def exact(logits: NDArray[np.float32], ids: list[int]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))[np.arange(len(ids)), ids]


@pytest.mark.parametrize("vocab_size", [1, 7, 50257])
def test_token_logprobs(vocab_size: int) -> None:
    random = np.random.RandomState(vocab_size)
    logits = (9 * random.standard_normal((12, vocab_size)) + 50).astype(np.float32)
    logits[3, 1:] = -np.inf
    ids = random.randint(0, vocab_size, 12).tolist()
    ids[3] = 0
    found = token_logprobs(logits, ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact(logits, ids), rtol=1e-6, atol=2e-6)
    apart = np.full((12, vocab_size + 5), 99, np.float32)  # rows as a runner may pad them
    apart[:, :vocab_size] = logits
    assert np.array_equal(token_logprobs(apart[:, :vocab_size], ids), found)


def test_token_logprobs_against_torch() -> None:
    torch = pytest.importorskip("torch")
    logits = (4 * np.random.RandomState(0).standard_normal((9, 5000))).astype(np.float32)
    ids = list(range(0, 4500, 500))
    theirs = torch.log_softmax(torch.tensor(logits), dim=-1)[torch.arange(9), torch.tensor(ids)]
    np.testing.assert_allclose(token_logprobs(logits, ids), theirs.numpy(), atol=1e-5)


def test_rows_that_are_no_numbers() -> None:
    for value in (np.nan, np.inf):
        logits = np.zeros((3, 8), np.float32)
        logits[1, 5] = value
        with pytest.raises(NumericError, match="at row 1"):
            token_logprobs(logits, [1, 2, 3])


@pytest.mark.parametrize("length", [1, 2, 33, 150])
def test_a_text_in_pieces(length: int) -> None:
    """The same bits whatever the pieces, beside other work, and never more than a piece of logits at once."""
    runner = DoubleRunner()
    ids = np.random.RandomState(length).randint(0, runner.vocab_size, length).tolist()
    rows = [runner.logits(ids[: t + 1]) for t in range(length - 1)]
    with Engine(runner) as engine:
        options = GenerationOptions.build({}, {"max_new_tokens": 40})
        alone = make_policy([1, 2], options, vocab_size=runner.vocab_size)
        engine.add(alone)
        for chunk in (1, 32, 50, 1000):
            engine.step()
            runner.batches.clear()
            score = score_ids(engine, ids, chunk=chunk)
            assert max((count for count, _ in runner.batches), default=0) <= chunk
            assert math.isnan(score.logprobs[0])
            assert score.token_ids == ids
            if length > 1:
                np.testing.assert_allclose(score.logprobs[1:], exact(np.stack(rows), ids[1:]), atol=2e-6)
        while engine.busy:
            engine.step()
        assert engine.cache.blocks_in_use == 0
        beside = make_policy([1, 2], options, vocab_size=runner.vocab_size)
        engine.add(beside)
        while engine.busy:
            engine.step()
        assert beside.results() == alone.results()


def test_pieces_that_are_left_unread_free_their_blocks() -> None:
    with Engine(DoubleRunner()) as engine:
        pieces = engine.score_rows([1] * 100, chunk=10)
        next(pieces)
        assert engine.cache.blocks_in_use
        pieces.close()
        assert engine.cache.blocks_in_use == 0


def test_after_a_source_the_first_token_counts() -> None:
    logits = np.random.RandomState(1).standard_normal((5, 9)).astype(np.float32)
    ids = [3, 1, 8, 0, 2]
    score = score_rows([logits[:2], logits[2:]], ids, preceded=True)
    expected = exact(logits, ids)
    np.testing.assert_allclose(score.logprobs, expected, atol=2e-6)
    assert score.scored == 5
    assert score.total == pytest.approx(expected.sum(), abs=1e-5)
    assert score.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert score.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)


def test_perplexity() -> None:
    uniform = score_rows([np.zeros((3, 50), np.float32)], [1, 2, 3, 4])
    assert uniform.perplexity == pytest.approx(50, rel=1e-6)
    assert uniform.scored == 3
    alone = Score([1], np.array([np.nan], np.float32))
    assert (alone.scored, alone.total) == (0, 0.0)
    assert math.isnan(alone.mean)
    assert math.isnan(alone.perplexity)
    never = Score([1, 2], np.array([np.nan, -np.inf], np.float32))
    assert (never.total, never.perplexity) == (-math.inf, math.inf)


def test_texts_and_rows_that_do_not_fit() -> None:
    with pytest.raises(PromptError, match="at least one token"):
        score_rows([], [])
    with pytest.raises(ValueError, match="3 tokens need a row of logits each, got rows up to 2"):
        score_rows([np.zeros((1, 5), np.float32)], [1, 2, 3])
    with pytest.raises(ValueError, match="argument"):
        score_rows([np.zeros((4, 5), np.float32)], [1, 2, 3])
