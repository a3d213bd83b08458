"""Sampling: num_return_sequences independent draws from the filtered distribution.

A draw depends on (seed, seed_index, sequence index, step) and on its own row only, so a sequence is the same alone,
beside others, or with its siblings ended. Random bits are Philox's, not torch's: the distribution is transformers', the
draws are not. Tokens that something cheaper proposes leave the distribution as it is (`verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import NumericError
from ..program.batch import DeviceRows
from . import _search
from .chain import FilterChain
from .policy import Hypothesis, Policy, Request
from .steps import Advance, Choice, Proposal, Verified
from .stopping import Stopping
from .track import Stop, Track

Cuts = tuple[float, int, float, float]  # temperature, top-k, top-p, min-p
Draw = Callable[
    [int, int, int, "_search.Weights | None"], int
]  # live sequence, row, proposed token, drawn from -> token

NO_CUTS: Cuts = (1.0, 0, 1.0, 0.0)
STAYS, PROPOSED = 1, 2  # numbers of a step beside the one a token is drawn with: whether a proposed one stays; for it


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
        o = request.options
        self._cuts: Cuts = (o.temperature, o.top_k, o.top_p, o.min_p or 0.0)
        self._is_told = self._chain.tells and not self._reads_logits
        self._scale = None  # of the sums that a draw reads, 0 where it reads none
        if self._chain.is_drawn_from_logits and not o.output_scores:
            self._scale = 0.0 if 0 < o.top_k < request.vocab_size else 1 / o.temperature

    def results(self) -> list[Hypothesis]:
        return [result for result in self._results if result is not None]

    def sequence_tokens(self, index: int) -> list[int]:
        return self._tracks[index].tokens[self.prompt_length :]

    def live_index(self, i: int) -> int:
        return self._index[i]

    @property
    def summary_scale(self) -> float | None:
        return self._scale

    def join(self, lanes: _search.Lanes, row: int) -> bool:
        alone = len(self._live) == 1 and (self._step > 0 or len(self._tracks) == 1)
        if self._scale is None or self._keeps or not self._stopping.by_tokens or not alone:
            return False
        at = self.seed, self.request.seed_index, self._index[0]
        tokens, ends = self._live[0].tokens, self._stopping.ends
        lanes.add(row, tokens, ends, self.prompt_length, self.max_length, self._cuts, *at)
        return True

    @property
    def choice(self) -> Choice | None:
        if not self._is_told:
            return None
        sequences = self._index if self._step else list(range(len(self._tracks)))
        step = len(self._live[0].tokens) - self.prompt_length
        return self._choice([track.tokens for track in self._live], sequences, [step] * len(sequences))

    def verify_choice(self, proposals: Sequence[Proposal]) -> Choice | None:
        if not self._is_told or any(proposal.drawn_from for proposal in proposals):
            return None
        histories: list[list[int]] = []
        sequences: list[int] = []
        for track, sequence, proposal in zip(self._live, self._index, proposals, strict=True):
            histories += [track.tokens + proposal.tokens[:i] for i in range(len(proposal.tokens) + 1)]
            sequences += [sequence] * (len(proposal.tokens) + 1)
        return self._choice(histories, sequences, [len(history) - self.prompt_length for history in histories])

    def _choice(self, histories: list[list[int]], sequences: list[int], steps: list[int]) -> Choice:
        changes = [] if self._chain.is_drawn_from_logits else [self._chain.changes(history) for history in histories]
        return Choice(self._cuts, sequences, steps, changes, self.seed, self.request.seed_index)

    def take(self, tokens: list[int]) -> Advance:
        if self._step == 0:
            self._fork()
        return self._grow(tokens)

    def settle(self) -> None:
        tokens = self._live[0].tokens
        stop = self._stopping.at_end_token(tokens[-1]) or self._stopping.for_all(len(tokens))
        assert stop is not None
        self._end(0, stop)
        self._live, self._index, self.finished = [], [], True

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        if self._step == 0 and len(self._tracks) > 1:
            logits = np.repeat(logits, len(self._tracks), axis=0)
            blocks = None if blocks is None else np.repeat(blocks, len(self._tracks), axis=0)
            self._fork()
        return self._grow(self._draw(logits, blocks))

    def _fork(self) -> None:
        """From one sequence, the prompt, to those that are asked for."""
        self._tracks[1:] = [self._tracks[0].fork() for _ in self._tracks[1:]]  # with what was kept of the row
        self._live, self._index = list(self._tracks), list(range(len(self._tracks)))

    def _grow(self, tokens: list[int]) -> Advance:
        parents = list(range(len(self._live))) if self._step else [0] * len(self._live)
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

    def _draw(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None) -> list[int]:
        """One token per live sequence."""
        o, step = self.options, len(self._live[0].tokens) - self.prompt_length
        uniforms = [_search.uniform(self.seed, self.request.seed_index, i, step) for i in self._index]
        scores, cuts = self._filtered(logits, self._live)
        sums = [_search.log_sum_exp(row) for row in scores] if o.output_scores else []
        if o.output_scores:
            self._keep_scores(self._live, scores)
        if self._scale is None or blocks is None:
            tokens = _search.sample(scores, *cuts, uniforms)
        else:
            tokens = _search.sample(scores, *cuts, uniforms, blocks, self._scale)
        if min(tokens) < 0:
            raise self._no_distribution(scores[tokens.index(-1)])
        for track, row, token, total in zip(self._live, scores, tokens, sums, strict=False):
            track.logprob += float(row[token]) - total
        return tokens

    def _filtered(self, logits: NDArray[np.float32], tracks: Sequence[Track]) -> tuple[NDArray[np.float32], Cuts]:
        """Scores [n, V] of n live sequences, and what is left to be done as a token is drawn."""
        histories = [track.tokens for track in tracks]
        if self._chain.sampling_fused and not self.options.output_scores:
            return self._chain.apply_plain(logits, histories), self._cuts
        return self._chain.apply(logits, histories), NO_CUTS

    def _stops(self, tokens: list[int]) -> list[Stop | None]:
        stops = [self._stopping.at_end_token(token) for token in tokens]
        if self._stopping.reads_text:
            histories = [track.tokens for track in self._live]
            in_text = self._stopping.in_text(histories, self._scores_so_far())
            stops = [ended or read for ended, read in zip(stops, in_text, strict=True)]
        over = self._stopping.for_all(len(self._live[0].tokens))
        return [stop or over for stop in stops]

    def _verify(self, logits: NDArray[np.float32], proposals: Sequence[Proposal]) -> Verified:
        def draw(i: int, row: int, proposed: int, drawn_from: _search.Weights | None) -> int:
            one = logits[row : row + 1]
            if self._keeps:
                self._keep_before(one, [self._live[i]])
            return self._draw_one(i, one, proposed, drawn_from)

        return self._checked(draw, proposals)

    def _take_verified(self, tokens: list[int], proposals: Sequence[Proposal], rows: DeviceRows) -> Verified:
        def draw(i: int, row: int, proposed: int, drawn_from: _search.Weights | None) -> int:
            if tokens[row] < 0:  # an error, for all that is known
                return self._draw_one(i, rows[row : row + 1].host(), proposed, drawn_from)
            return tokens[row]

        return self._checked(draw, proposals)

    def _checked(self, draw: Draw, proposals: Sequence[Proposal]) -> Verified:
        """Each sequence goes as far as it gets; from here on their lengths differ."""
        grown: list[int] = []
        going: list[int] = []
        row = 0
        for i, proposal in enumerate(proposals):
            before = len(self._live[i].tokens)
            stop = self._take(i, row, draw, proposal)
            row += len(proposal.tokens) + 1
            grown.append(len(self._live[i].tokens) - before)
            if stop is None:
                going.append(i)
            else:
                self._end(i, stop)
        self._live, self._index = [self._live[i] for i in going], [self._index[i] for i in going]
        self.finished = not going
        return Verified(going, [track.tokens[-1] for track in self._live], grown)

    def _take(self, i: int, row: int, draw: Draw, proposal: Proposal) -> Stop | None:
        """Grows live sequence i, whose rows begin at `row`, by the proposed tokens that hold and one more, and says
        whether it has ended."""
        track = self._live[i]
        for j, proposed in enumerate([*proposal.tokens, -1]):
            drawn_from = proposal.drawn_from[j] if proposal.drawn_from and proposed >= 0 else None
            token = draw(i, row + j, proposed, drawn_from)
            track.take(token)
            stop = self._stopping.at_end_token(token)
            if stop is None and self._stopping.reads_text:
                scores = tuple(kept[None] for kept in track.keep().scores) if self.options.output_scores else None
                stop = self._stopping.in_text([track.tokens], scores)[0]
            stop = stop or self._stopping.for_all(len(track.tokens))
            if stop is not None or token != proposed:
                return stop
        raise AssertionError("no token is -1")

    def _draw_one(self, i: int, row: NDArray[np.float32], proposed: int, drawn_from: _search.Weights | None) -> int:
        """Live sequence i's next token from its logits [1, V].

        Speculative sampling (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318): a token
        that was drawn from q stays with probability min(1, p / q), or else one is drawn from max(p - q, 0), normalised;
        so it is distributed as p. One that wasn't drawn has q = 1: it stays if the draw from p, with the number that a
        step without proposals takes, happens to give it.
        """
        track = self._live[i]
        scores, cuts = self._filtered(row, [track])
        total = 0.0
        if self.options.output_scores:
            total = _search.log_sum_exp(scores[0])
            track.keep().scores.append(scores[0].copy())
        at = self.seed, self.request.seed_index, self._index[i], len(track.tokens) - self.prompt_length
        if drawn_from is None:
            (token,) = _search.sample(scores, *cuts, [_search.uniform(*at)])
        else:
            own = _search.weights(scores[0], *cuts)
            token = -1
            if own is not None:
                stays = _search.uniform(*at, STAYS) * drawn_from.probability(proposed) < own.probability(proposed)
                token = proposed if stays else own.draw_beyond(drawn_from, _search.uniform(*at))
        if token < 0:
            raise self._no_distribution(scores[0])
        if self.options.output_scores:
            track.logprob += float(scores[0, token]) - total
        return token

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
