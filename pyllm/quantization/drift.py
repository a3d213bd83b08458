"""How far a model is from another with the same vocabulary, on a text: perplexity and divergence of what they predict,
or, for encoders, the angle between their vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.encoder_model import EncoderModel
from ..engine.language_model import LanguageModel
from ..engine.model import Model
from ..engine.seq2seq_model import Seq2SeqModel
from ..errors import NumericError


@dataclass(frozen=True)
class Drift:
    """Over `tokens` tokens of a text.

    perplexity, reference_perplexity   exp of the mean negative log-probability of each token given those before it in
                                       its piece; None for encoders
    divergence   mean over tokens of KL(reference || model), in nats; None for encoders
    angle        mean of 1 - cos between the last hidden states; encoders only
    change       what a limit is set on, never negative: the relative rise of perplexity, or that which the divergence
                 makes one expect (exp(KL) - 1) where it is larger, for a short text may be luckier; encoders: the angle
    """

    tokens: int
    perplexity: float | None
    reference_perplexity: float | None
    divergence: float | None
    angle: float | None

    @property
    def change(self) -> float:
        if self.angle is not None:
            return self.angle
        expected = float(np.expm1(self.divergence or 0.0))
        if self.perplexity is None or self.reference_perplexity is None:
            return expected
        return max(expected, self.perplexity / self.reference_perplexity - 1)


def drift(model: Model, reference: Model, texts: list[list[int]]) -> Drift:
    """Of token ids in pieces that fit the context. Encoder-decoders repeat their source: a piece is source and target.

    Raises NumericError where either gives numbers that are not finite.
    """
    if isinstance(reference, EncoderModel) and isinstance(model, EncoderModel):
        return _of_vectors(model, reference, texts)
    tokens, nats, reference_nats, divergence = 0, 0.0, 0.0, 0.0
    for ids in texts:
        ours, theirs = (_log_softmax(_logits(each, ids)) for each in (model, reference))
        following = (np.arange(len(ids) - 1), np.array(ids[1:]))
        nats -= float(ours[following].sum())
        reference_nats -= float(theirs[following].sum())
        divergence += float((np.exp(theirs[:-1]) * (theirs[:-1] - ours[:-1])).sum())
        tokens += len(ids) - 1
    if isinstance(reference, Seq2SeqModel):
        return Drift(tokens, None, None, divergence / tokens, None)
    return Drift(
        tokens, float(np.exp(nats / tokens)), float(np.exp(reference_nats / tokens)), divergence / tokens, None
    )


def _logits(model: Model, ids: list[int]) -> NDArray[np.float32]:
    if isinstance(model, Seq2SeqModel):
        return model.logits(ids, source=ids)
    assert isinstance(model, LanguageModel)
    return model.logits(ids)


def _of_vectors(model: EncoderModel, reference: EncoderModel, texts: list[list[int]]) -> Drift:
    ours, theirs = (np.concatenate(each.forward(texts, output="hidden")) for each in (model, reference))
    _check_finite((ours, theirs))
    product = (ours * theirs).sum(1, dtype=np.float64)
    lengths = np.linalg.norm(ours.astype(np.float64), axis=1) * np.linalg.norm(theirs.astype(np.float64), axis=1)
    return Drift(len(product), None, None, None, float(1 - (product / np.maximum(lengths, 1e-30)).mean()))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    _check_finite((logits,))
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _check_finite(arrays: Iterable[NDArray[np.float32]]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise NumericError("[quantize] a model gave infinities or NaN for the text; its weights are damaged")
