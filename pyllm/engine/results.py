"""What a generation returns: data, and text that is decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode.policy import Hypothesis
from ..errors import PyllmError


class LazyText:
    """Text that `decode` makes when it is first asked for: the tokenizer is read for those who want text only.

    Copies made by pickle and deepcopy are what was found, a str or the PyllmError that was raised: they need no file.
    """

    def __init__(self, decode: Callable[[], str]) -> None:
        self._decode: Callable[[], str] | None = decode
        self._found: str | PyllmError = ""

    def found(self) -> str | PyllmError:
        """The text, or why there is none. Two threads may both decode; they find the same."""
        decode = self._decode
        if decode is not None:
            try:
                self._found = decode()
            except PyllmError as error:
                self._found = error
            self._decode = None  # last: another thread that sees it reads what was found; and the tokenizer is let go
        return self._found

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.found(),)


def _same(found: str | PyllmError) -> str | PyllmError:
    return found


@dataclass(frozen=True, repr=False)
class GeneratedSequence:
    """One continuation of a prompt.

    token_ids      the new tokens only, the end token included when one was generated
    score          beams: log-probability per token under the length penalty (transformers' `sequences_scores`), plus
                   the coverage term where coverage_penalty asks for it; greedy and sampling: log-probability of the
                   new tokens when `output_scores` was asked for, else None; alternatives: log-probability of the first
                   token plus the score of what follows it
    finish_reason  "stop" (end token), "length", "stop_string", "time" or "criteria" (a stopping_criteria callable)
    stop_string    the string that was met when finish_reason is "stop_string"; the text includes it
    logits         float32 [steps, V], row t as the network gave it where token t was chosen; with output_logits=True
    scores         float32 [steps, V], the same after all filters (beams: log-probabilities); with output_scores=True
    logprobs       float32 [steps], log-probability of each token as the network gave it, before any filter; with
                   logprobs=k
    top_logprobs   (ids int32 [steps, k], log-probabilities float32 [steps, k]) of the k most likely tokens at each
                   step, best first; with logprobs=k, k > 0
    attention      float32 [steps, S], row t how much each of the source's S tokens was attended to when token t was
                   chosen (last decoder layer, first head, as in CTranslate2); with output_cross_attentions=True
    hidden_states  float32 [T, D] for each layer asked for with output_hidden_states (0: the embeddings), over the
                   prompt and all new tokens but the last, which the network has not read
    attentions     float32 [H, T, T] for each layer asked for with output_attentions
    cross_attentions   the same over an encoder-decoder's source, float32 [H, T, S]
    """

    token_ids: list[int]
    score: float | None
    finish_reason: str
    stop_string: str | None = None
    logits: NDArray[np.float32] | None = field(default=None, compare=False)
    scores: NDArray[np.float32] | None = field(default=None, compare=False)
    logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    top_logprobs: tuple[NDArray[np.int32], NDArray[np.float32]] | None = field(default=None, compare=False)
    attention: NDArray[np.float32] | None = field(default=None, compare=False)
    hidden_states: list[NDArray[np.float32]] | None = field(default=None, compare=False)
    attentions: list[NDArray[np.float32]] | None = field(default=None, compare=False)
    cross_attentions: list[NDArray[np.float32]] | None = field(default=None, compare=False)
    _text: str | PyllmError | LazyText = field(default="", compare=False, kw_only=True)

    @property
    def text(self) -> str:
        """The new tokens as text, special tokens left out; decoded when it is first asked for. Raises TokenizerError
        for a model without a usable tokenizer."""
        found = self._found()
        if isinstance(found, PyllmError):
            raise found
        return found

    def _found(self) -> str | PyllmError:
        return self._text.found() if isinstance(self._text, LazyText) else self._text

    def __repr__(self) -> str:
        found = self._found()
        text = f"{found!r}, " if isinstance(found, str) else ""
        score = "" if self.score is None else f", score={self.score:.4f}"
        return f"GeneratedSequence({text}token_ids={self.token_ids}{score}, finish_reason={self.finish_reason!r})"

    @classmethod
    def of(cls, hypothesis: Hypothesis, text: LazyText) -> GeneratedSequence:
        """The public form of a search's result."""
        return cls(
            token_ids=hypothesis.token_ids,
            score=hypothesis.score,
            finish_reason=hypothesis.finish_reason,
            stop_string=hypothesis.stop_string,
            logits=hypothesis.logits,
            scores=hypothesis.scores,
            logprobs=hypothesis.logprobs,
            top_logprobs=hypothesis.top_logprobs,
            attention=hypothesis.attention,
            _text=text,
        )


@dataclass(frozen=True)
class SpeculationCounts:
    """What speculation was worth, over all sequences of one prompt.

    steps      times that a sequence was stepped with a proposal, empty ones included; each gives one token beside the
               accepted ones
    proposed   tokens proposed
    accepted   those of them that became text
    """

    steps: int
    proposed: int
    accepted: int

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed tokens that were accepted; 0 when none were proposed."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_step(self) -> float:
        """New tokens for one pass over the weights: 1 without speculation."""
        return 1 + self.accepted / self.steps if self.steps else 1.0


@dataclass(frozen=True)
class Generation:
    """Everything one prompt led to. Attributes of `GeneratedSequence` are those of the best sequence.

    sequences         the num_return_sequences results, best first (sampling: in the order they were drawn)
    prompt_token_ids  the prompt as the network read it, special tokens included
    seed              give it as `seed=` to draw the same samples again; None when nothing was drawn
    speculation       what prompt_lookup_num_tokens or assistant_model were worth; None without them
    """

    sequences: list[GeneratedSequence]
    prompt_token_ids: list[int] = field(repr=False)
    seed: int | None = None
    speculation: SpeculationCounts | None = field(default=None, compare=False)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_token_ids)

    @property
    def text(self) -> str:
        """New text of the best sequence. Raises TokenizerError for a model without a tokenizer."""
        return self.sequences[0].text

    @property
    def token_ids(self) -> list[int]:
        """New tokens of the best sequence."""
        return self.sequences[0].token_ids

    @property
    def score(self) -> float | None:
        """Score of the best sequence (see GeneratedSequence)."""
        return self.sequences[0].score

    @property
    def finish_reason(self) -> str:
        """Why the best sequence ended (see GeneratedSequence)."""
        return self.sequences[0].finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string the best sequence met, if that ended it."""
        return self.sequences[0].stop_string

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """float32 [steps, V] along the best sequence, with output_logits=True."""
        return self.sequences[0].logits

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """float32 [steps, V] along the best sequence, with output_scores=True."""
        return self.sequences[0].scores

    @property
    def logprobs(self) -> NDArray[np.float32] | None:
        """float32 [steps] along the best sequence, with logprobs=k (see GeneratedSequence)."""
        return self.sequences[0].logprobs

    @property
    def top_logprobs(self) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Ids and log-probabilities [steps, k] along the best sequence, with logprobs=k (see GeneratedSequence)."""
        return self.sequences[0].top_logprobs

    @property
    def attention(self) -> NDArray[np.float32] | None:
        """float32 [steps, S] along the best sequence, with output_cross_attentions=True (see GeneratedSequence)."""
        return self.sequences[0].attention
