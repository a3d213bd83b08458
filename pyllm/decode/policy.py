"""The interface between the engine's loop and a search: rows of logits in, forks and ends out.

One policy serves one prompt (one sequence group). Greedy, sampling, beam and group beam search live in their
own files; this one holds what they share and `make_policy`. Nothing here knows of models, caches or text: for an
encoder-decoder the "prompt" is what its decoder starts with, and lengths count the decoder's tokens.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidOptionError, NumericError, PromptError
from ..program.batch import Best, DeviceRows
from . import _search
from .options import GenerationOptions
from .steps import Advance, Choice, Proposal, Ranking, Verified
from .track import Distribution, Kept, Stop, Track, hypothesis, keeps_anything
from .track import Hypothesis as Hypothesis  # the other half of the interface

Decode = Callable[[list[int]], str]

# Options for which a search reads the logits itself where a device could choose, if they differ from their defaults.
_READ_LOGITS = (
    *("num_beam_groups", "return_alternatives", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("exponential_decay_length_penalty", "remove_invalid_values", "logits_processor", "prefix_allowed_tokens_fn"),
    *("output_scores", "output_logits", "logprobs"),
)


@dataclass(frozen=True)
class Request:
    """What a policy is made for, with every length resolved.

    prompt_ids   the prompt's tokens (encoder-decoders: the decoder's start and forced prefix)
    options      the validated options
    source_ids   the encoder's input; None without an encoder, where the prompt takes its place, as in transformers
    vocab_size   V
    max_length   most tokens a sequence may have, prompt included
    seed         64-bit key of the random numbers; seed_index tells requests with one seed apart (see `make_policy`)
    batch_id     first argument of prefix_allowed_tokens_fn
    decode       token ids to text with special tokens kept; needed for stop_strings only
    started      time.monotonic() at which max_time began to count
    """

    prompt_ids: list[int]
    options: GenerationOptions
    vocab_size: int
    max_length: int
    seed: int
    seed_index: int = 0
    batch_id: int = 0
    decode: Decode | None = None
    started: float = 0.0
    source_ids: list[int] | None = None


class Policy(ABC):
    """Decides the next tokens of one prompt's sequences.

    The engine runs the prompt, then repeats until `finished`:

        step = policy.advance(logits)      # float32 [num_live, V]; the first call: the prompt's last row
        fork and drop caches by step.parents, feed step.tokens

    and reads `results()`. `prompt_ids`, `options`, `max_length` and `seed` are for reading. When `needs_attention`, it
    calls `note_attention` before each `advance`.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.options = request.options
        self.prompt_ids = request.prompt_ids
        self.prompt_length = len(request.prompt_ids)
        self.max_length = request.max_length
        self.seed = request.seed
        self.finished = False
        self.checked = self.proposed = self.accepted = 0  # by verify(): steps of a sequence, and tokens
        o = request.options
        self.needs_attention = o.output_cross_attentions or (o.coverage_penalty != 0 and o.num_beams > 1)
        self._keeps = keeps_anything(o, self.needs_attention)
        self._reads_logits = o.output_scores or o.output_logits or o.logprobs is not None
        self._live = [Track(list(request.prompt_ids), kept=Kept() if self._keeps else None)]
        self._steps: list[NDArray[np.float32]] = []  # filtered scores of each step, for stopping criteria

    @property
    def num_live(self) -> int:
        """Rows the next `advance` wants: 1 before the first call, 0 once finished."""
        return 0 if self.finished else len(self._live)

    def live_tokens(self, i: int) -> list[int]:
        """Prompt and generated tokens of live sequence i (the policy's own list: read only)."""
        return self._live[i].tokens

    def live_index(self, i: int) -> int:
        """Which returned sequence live sequence i will be; only where that is certain (greedy search and sampling)."""
        return i

    @property
    def summary_scale(self) -> float | None:
        """The scale of the sums of a summary that the next `advance` can use, 0 if it needs the maxima only; None: it
        reads all logits anyway."""
        return None

    def advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        """Takes one step.

        logits: float32 [num_live, V], rows contiguous, row i for live sequence i. The policy overwrites it and keeps
        no reference to it. blocks: their summary, of `summary_scale`, if there is one; it makes no difference to the
        result. Raises NumericError when a row holds NaN (unless `remove_invalid_values`).
        """
        if self.finished:
            raise RuntimeError("[policy] advance after the group has finished; ask `finished` first")
        expected = (len(self._live), self.request.vocab_size)
        if logits.shape != expected or logits.dtype != np.float32 or logits.strides[1] != logits.itemsize:
            raise ValueError(
                f"[policy] logits must be float32 {expected} with contiguous rows, got {logits.dtype} {logits.shape}, "
                f"strides {logits.strides}; pass one row per live sequence"
            )
        if self._keeps:
            self._keep_before(logits, self._live)
        return self._advance(logits, blocks)

    def join(self, lanes: _search.Lanes, row: int) -> bool:
        """Joins lanes that choose its next tokens from now on, from row `row` of their logits, in place of `advance`;
        `settle` ends it. False, and nothing has happened, where there is more to a step than a choice."""
        return False

    def settle(self) -> None:
        """Ends the group, whose last token a lane has chosen."""
        raise RuntimeError("[policy] settle without a lane")

    @property
    def choice(self) -> Choice | None:
        """How a device can make the next step's choices, for `take`; None where there is more to a step."""
        return None

    def take(self, tokens: list[int]) -> Advance:
        """Takes one step with tokens that were chosen elsewhere, as `choice` says."""
        raise RuntimeError("[policy] this search chooses by itself")

    @property
    def ranking(self) -> Ranking | None:
        """What `rank` needs of a device's rows; None: it needs the logits themselves."""
        return None

    def rank(self, best: Best) -> Advance:
        """Takes one step with continuations that a device has ranked, as `ranking` says."""
        raise RuntimeError("[policy] this search ranks by itself")

    def verify_choice(self, proposals: Sequence[Proposal]) -> Choice | None:
        """How a device can make the choices of `verify`, one for each row, for `take_verified`."""
        return None

    def take_verified(self, tokens: list[int], proposals: Sequence[Proposal], rows: DeviceRows) -> Verified:
        """`verify` with what was chosen elsewhere; -1 of a row without a choice, whose logits are then read."""
        step = self._take_verified(tokens, proposals, rows)
        return self._counted(step, proposals)

    @property
    def needs_logits(self) -> str:
        """Names of the options for which the logits are read."""
        o, fields = self.options, GenerationOptions.__dataclass_fields__
        given = [name for name in _READ_LOGITS if getattr(o, name) != fields[name].default]
        if o.do_sample and o.renormalize_logits:
            given.append("do_sample with renormalize_logits")
        if o.do_sample and (o.num_beams > 1 or o.assistant_model is not None):
            given.append("do_sample with " + ("num_beams" if o.num_beams > 1 else "assistant_model"))
        return ", ".join(given) or "a large vocabulary or many beams"

    def verify(self, logits: NDArray[np.float32], proposals: Sequence[Proposal]) -> Verified:
        """Takes as many steps as proposals turn out to be right, and one more, of each live sequence for itself.

        logits: float32 [sum of len(proposal.tokens) + 1, V]: for each live sequence the row after its last token, then
        the rows after each proposed token. They are read as far as those tokens are what `advance` would have chosen
        (not drawn: the texts are the same to the token), or as speculative sampling accepts them (drawn: the texts
        have the same distribution). Not before the first `advance`; greedy search and sampling only.
        """
        if self.finished or len(logits) != sum(len(one.tokens) + 1 for one in proposals):
            raise RuntimeError(f"[policy] verify got {len(logits)} rows, or the group has finished")
        return self._counted(self._verify(logits, proposals), proposals)

    def _counted(self, step: Verified, proposals: Sequence[Proposal]) -> Verified:
        self.checked += len(proposals)
        self.proposed += sum(len(one.tokens) for one in proposals)
        self.accepted += sum(step.grown) - len(proposals)
        return step

    def begin(self, track: Track, steps: Sequence[NDArray[np.float32]]) -> None:
        """Goes on from a sequence that has new tokens already, instead of from the prompt. steps: filtered scores of
        the steps so far, when they are kept. Only before the first `advance` of a greedy or beam search."""
        self._live = [track]
        self._steps = list(steps)

    def note_attention(self, rows: NDArray[np.float32]) -> None:
        """Takes the attention that the next `advance` is to be seen with: float32 [num_live, S], row i for live
        sequence i, over the source's S positions (copied). Does nothing for a policy that doesn't need it."""
        if not self.needs_attention:
            return
        if rows.ndim != 2 or len(rows) != len(self._live):
            raise ValueError(f"[policy] attention must be float32 [{len(self._live)}, S], got shape {rows.shape}")
        for track, row in zip(self._live, rows.astype(np.float32), strict=True):
            track.keep().attention.append(row)

    def stop(self, reason: str) -> None:
        """Ends the group now (interrupt, disconnect, deadline); results() then holds what there is, with this
        finish_reason for the sequences that were still running. Does nothing on a finished group."""
        if not self.finished:
            self._stop(reason)
            self.finished = True

    @abstractmethod
    def results(self) -> list[Hypothesis]:
        """The num_return_sequences sequences, best first (sampling: in order of their index). Valid once finished."""

    def sequence_tokens(self, index: int) -> list[int]:
        """New tokens so far of returned sequence `index`, running or ended: what a stream shows. Only for
        policies whose sequences never change once emitted (greedy and sampling). Read only."""
        raise ValueError("[policy] beams have no stable sequence before the end; stream with num_beams=1")

    @abstractmethod
    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        """One step of the search; sets `finished`."""

    def _verify(self, logits: NDArray[np.float32], proposals: Sequence[Proposal]) -> Verified:
        raise ValueError("[policy] this search takes no proposals; use num_beams=1")

    def _take_verified(self, tokens: list[int], proposals: Sequence[Proposal], rows: DeviceRows) -> Verified:
        raise RuntimeError("[policy] this search verifies by itself")

    @abstractmethod
    def _stop(self, reason: str) -> None:
        """Turns what is still running into results."""

    def _keep_before(self, logits: NDArray[np.float32], tracks: Sequence[Track]) -> None:
        """Notes what results need of the untouched logits [n, V] of n live sequences."""
        if self.options.output_logits:
            for track, row in zip(tracks, logits.copy(), strict=True):
                track.keep().logits.append(row)
        if (k := self.options.logprobs) is not None:
            for track, row in zip(tracks, logits, strict=True):
                track.keep().drawn_from = Distribution(row, k)
        first = self._live[0]
        if self.needs_attention and len(first.keep().attention) <= len(first.tokens) - self.prompt_length:
            raise ValueError("[policy] this search needs attention, got logits only; call note_attention first")

    def _keep_scores(self, tracks: Sequence[Track], scores: NDArray[np.float32]) -> None:
        """Notes the filtered scores [n, V] for the tracks they belong to, when they are to be returned."""
        if self.options.output_scores:
            kept = scores.copy()
            self._steps.append(kept)
            for track, row in zip(tracks, kept, strict=True):
                track.keep().scores.append(row)

    def _scores_so_far(self) -> tuple[NDArray[np.float32], ...] | None:
        return tuple(self._steps) if self.options.output_scores else None

    def _hypothesis(self, track: Track, score: float | None, reason: str, stop_string: str | None) -> Hypothesis:
        source = self.request.source_ids
        width = self.request.vocab_size, 0 if source is None else len(source)
        return hypothesis(track, self.prompt_length, self.options, width, score, Stop(reason, stop_string))

    def _not_a_number(self) -> NumericError:
        return NumericError(
            f"[generate] logits must be numbers, got NaN at position {len(self._live[0].tokens)} of the sequence; "
            "check the checkpoint for damaged weights, or load it with dtype='float32' if it overflowed"
        )


def make_policy(
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    *,
    vocab_size: int,
    seed_index: int = 0,
    batch_id: int = 0,
    max_positions: int | None = None,
    decode: Decode | None = None,
    seed: int | None = None,
    source_ids: Sequence[int] | None = None,
) -> Policy:
    """The policy that `options` ask for: greedy, sampling, beams (also sampled), groups of beams or alternatives.

    prompt_ids     tokens of one prompt, at least one, all in [0, vocab_size); for an encoder-decoder what its decoder
                   starts with: decoder_start_token_id, then a forced prefix if there is one
    seed_index     the random numbers depend on (seed, seed_index, sequence index, step) only. Give 0 for every prompt
                   and a prompt's sample does not change with its place in the batch (two equal prompts then get
                   equal samples); give the prompt's index to make equal prompts differ
    batch_id       the prompt's index in the batch, handed to prefix_allowed_tokens_fn
    max_positions  the model's context; caps the default length and bounds an asked one
    decode         ids to text with special tokens KEPT; required when stop_strings are set
    seed           overrides options.seed; with neither, a fresh one is drawn and kept in `policy.seed`
    source_ids     the encoder's input of an encoder-decoder, which the encoder_* options speak of

    Raises PromptError, ContextLengthError, InvalidOptionError (ids outside the vocabulary, all at once).
    """
    from .alternatives import AlternativesPolicy
    from .beam import BeamPolicy
    from .greedy import GreedyPolicy
    from .group_beam import GroupBeamPolicy
    from .sample import SamplePolicy

    prompt = [int(token) for token in prompt_ids]
    _check_prompt(prompt, vocab_size)
    options.check_vocabulary(vocab_size)
    if options.stop_strings and decode is None:
        raise InvalidOptionError("[generate] stop_strings need a tokenizer, got a model without one; pass stop ids")
    seed = options.seed if seed is None else seed
    request = Request(
        prompt_ids=prompt,
        options=options,
        vocab_size=vocab_size,
        max_length=options.length_limit(len(prompt), max_positions),
        seed=int.from_bytes(os.urandom(8), "little") if seed is None else seed & (2**64 - 1),
        seed_index=seed_index,
        batch_id=batch_id,
        decode=decode,
        started=time.monotonic(),
        source_ids=None if source_ids is None else [int(token) for token in source_ids],
    )
    kind: type[Policy]
    if options.return_alternatives:
        kind = AlternativesPolicy
    elif options.num_beams > 1:
        kind = GroupBeamPolicy if options.num_beam_groups > 1 else BeamPolicy
    else:
        kind = SamplePolicy if options.do_sample else GreedyPolicy
    policy = kind(request)
    if policy.needs_attention and source_ids is None:
        raise InvalidOptionError(
            "[generate] coverage_penalty and output_cross_attentions need attention to a source, got a model without "
            "an encoder; leave them out"
        )
    return policy


def _check_prompt(prompt: list[int], vocab_size: int) -> None:
    if not prompt:
        raise PromptError("[generate] a prompt needs at least one token, got none; pass text or the begin token's id")
    bad = sorted({token for token in prompt if not 0 <= token < vocab_size})
    if bad:
        raise PromptError(
            f"[generate] prompt ids must lie in [0, {vocab_size}), got {bad[:10]}; "
            "use the tokenizer that belongs to this model"
        )
