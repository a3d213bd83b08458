"""Arguments of another kind than a method takes: a typed error that names method, argument and what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

import pyllm
from pyllm.errors import InvalidOptionError, PromptError, TokenizerError

Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def decoder() -> pyllm.LanguageModel:
    return pyllm.load(pyllm.default_model())


@pytest.fixture(scope="module")
def seq2seq() -> pyllm.Seq2SeqModel:
    return pyllm.load(FIXTURES / "t5")


@pytest.fixture(scope="module")
def encoder() -> pyllm.EncoderModel:
    return pyllm.load(FIXTURES / "bert-base")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model.logits("ab", source=[5]), PromptError, r"\[logits\] decoder_ids must .* got 'ab'"),
        (lambda model: model.logits([0.5], source=[5]), PromptError, r"\[logits\] decoder_ids must .* got \[0\.5\]"),
        (lambda model: model.logits([[0, 5]], source=[5]), PromptError, r"decoder_ids must .* got \[\[0, 5\]\]"),
        (lambda model: model.logits(5, source=[5]), PromptError, "decoder_ids must .* got int"),
        (lambda model: model.logits([0], source=[]), PromptError, r"\[logits\] .*got no tokens"),
        (lambda model: model.hidden_states("ab", source=[5]), PromptError, r"\[hidden_states\] decoder_ids must"),
        (lambda model: model.attentions([0], source=None), PromptError, r"\[attentions\] a text is .* got NoneType"),
        (lambda model: model.generate([5], target_prefix=5), PromptError, "target_prefix.* got int"),
        (lambda model: model.generate([[5]], target_prefix=[[5.5]]), PromptError, r"target_prefix.* got \[5\.5\]"),
        (lambda model: model.score([[5]], [6]), InvalidOptionError, "got a list of 1 and one; pass two texts"),
    ],
)
def test_encoder_decoders(seq2seq: pyllm.Seq2SeqModel, call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(seq2seq)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model.embed(None), PromptError, r"\[embed\] a text is .* got NoneType"),
        (lambda model: model.embed(text for text in ("a", "b")), PromptError, r"\[embed\] .* got generator"),
        (lambda model: model.embed([5], normalize="no"), InvalidOptionError, "normalize must be True or False"),
        (lambda model: model.embed([5], truncation=1), InvalidOptionError, "truncation must be True or False"),
        (lambda model: model.embed([5], batch_size=True), InvalidOptionError, "batch_size must be an integer >= 1"),
        (lambda model: model.encode(5), PromptError, r"\[encode\] a text is"),
        (lambda model: model.hidden_states([5], layers=-1), InvalidOptionError, "layers must be a list .* got -1"),
        (lambda model: model.attentions([5], layers="0"), InvalidOptionError, "layers must be a list .* got '0'"),
        (lambda model: model.hidden_states([[5], [6]]), PromptError, r"\[hidden_states\] one text at a time"),
    ],
)
def test_encoders(encoder: pyllm.EncoderModel, call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(encoder)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model.logits(["a", "b"]), PromptError, r"\[logits\] one text at a time here, got a list of 2"),
        (lambda model: model.score(None), PromptError, r"\[score\] a text is"),
        (lambda model: model.stream(["a"]), PromptError, r"\[stream\] one text at a time"),
        (lambda model: model.attentions([]), PromptError, r"\[attentions\] .*got no tokens"),
        (lambda model: model.tokenizer.decode(5), TokenizerError, r"\[decode\] ids are a list of integers, got int"),
    ],
)
def test_decoders(decoder: pyllm.LanguageModel, call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(decoder)


def test_nothing_to_embed_gives_no_vectors(encoder: pyllm.EncoderModel) -> None:
    for nothing in ([], (), np.array([], dtype=str)):
        assert encoder.embed(nothing).shape == (0, encoder.embed([5]).shape[0])
