"""Sampling: num_return_sequences independent draws from the filtered distribution.

A draw depends on (seed, seed_index, sequence index, step) and on its own row only, so a sequence is the same alone,
beside others, or with its siblings ended. Random bits are Philox's, not torch's: the distribution is transformers', the
draws are not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import NumericError
from . import _search, filters
from .chain import FilterChain
from .policy import Advance, Hypothesis, Policy, Request
from .stopping import Stopping
from .track import Stop


class SamplePolicy(Policy):
    """Sequences share the prompt's row in the first step and go their own ways from then on."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._chain = FilterChain(request)
        self._stopping = Stopping(request)
        count = request.options.num_return_sequences
        self._index = [0]  # returned sequence that a live one will be; filled in the first step
        self._tracks = [self._live[0]] + [self._live[0].fork() for _ in range(count - 1)]
        self._results: list[Hypothesis | None] = [None] * count
        self._step = 0

    def results(self) -> list[Hypothesis]:
        return [result for result in self._results if result is not None]

    def sequence_tokens(self, index: int) -> list[int]:
        return self._tracks[index].tokens[self.prompt_length :]

    def _advance(self, logits: NDArray[np.float32]) -> Advance:
        parents = list(range(len(self._live)))
        if self._step == 0 and len(self._tracks) > 1:
            logits = np.repeat(logits, len(self._tracks), axis=0)
            self._tracks[1:] = [self._tracks[0].fork() for _ in self._tracks[1:]]  # with what was kept of the row
            self._live, self._index = list(self._tracks), list(range(len(self._tracks)))
            parents = [0] * len(self._tracks)
        tokens = self._draw(logits)
        for track, token in zip(self._live, tokens, strict=True):
            track.take(token)
        self._step += 1
        stops = self._stops(tokens)
        going = [i for i, stop in enumerate(stops) if stop is None]
        for i, stop in enumerate(stops):
            if stop is not None:
                self._end(i, stop)
        self._live, self._index = [self._live[i] for i in going], [self._index[i] for i in going]
        self.finished = not going
        return Advance([parents[i] for i in going], [tokens[i] for i in going])

    def _draw(self, logits: NDArray[np.float32]) -> list[int]:
        """One token per live sequence."""
        o, histories = self.options, [track.tokens for track in self._live]
        uniforms = [_search.uniform(self.seed, self.request.seed_index, i, self._step) for i in self._index]
        if self._chain.sampling_fused and not o.output_scores:
            scores = self._chain.apply_plain(logits, histories)
            if o.temperature != 1:
                filters.temperature(scores, o.temperature)
            k, p, ratio = o.top_k, o.top_p, o.min_p or 0.0
        else:
            scores = self._chain.apply(logits, histories)
            self._keep_scores(self._live, scores)
            k, p, ratio = 0, 1.0, 0.0
        sums = [_search.log_sum_exp(row) for row in scores] if o.output_scores else []
        tokens = [_search.sample_(row, k, p, ratio, u) for row, u in zip(scores, uniforms, strict=True)]
        if min(tokens) < 0:
            raise self._no_distribution(scores[tokens.index(-1)])
        for track, row, token, total in zip(self._live, scores, tokens, sums, strict=False):
            track.logprob += float(row[token]) - total
        return tokens

    def _stops(self, tokens: list[int]) -> list[Stop | None]:
        stops = [self._stopping.at_end_token(token) for token in tokens]
        if self._stopping.reads_text:
            histories = [track.tokens for track in self._live]
            in_text = self._stopping.in_text(histories, self._scores_so_far())
            stops = [ended or read for ended, read in zip(stops, in_text, strict=True)]
        over = self._stopping.for_all(len(self._live[0].tokens))
        return [stop or over for stop in stops]

    def _no_distribution(self, row: NDArray[np.float32]) -> NumericError:
        if np.isnan(row).any():
            return self._not_a_number()
        return NumericError(
            f"[generate] a token must be left to draw, got none at position {len(self._live[0].tokens)}: the filters "
            "ruled out all or made one infinite; loosen suppress_tokens, bad_words_ids or the logits_processor"
        )

    def _stop(self, reason: str) -> None:
        if self._step == 0:
            self._live, self._index = list(self._tracks), list(range(len(self._tracks)))
        for i in range(len(self._live)):
            self._end(i, Stop(reason))

    def _end(self, i: int, stop: Stop) -> None:
        track = self._live[i]
        score = track.logprob if self.options.output_scores else None
        self._results[self._index[i]] = self._hypothesis(track, score, *stop)
