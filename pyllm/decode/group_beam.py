"""Diverse beam search, as transformers 4 does it (group_beam_search with BeamSearchScorer), for one prompt.

num_beam_groups groups of num_beams / num_beam_groups beams search one after another in each step; a token is lowered
by diversity_penalty for each beam of an earlier group that chose it. Each group has its own finished hypotheses and
ends by itself; a group that has ended counts as choosing the padding token. Where transformers 4 appends its first end
token to a finished text, the end token that was generated is kept. Stop strings and criteria end a sequence as an end
token does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _search
from .beam import OUT, Continuation, ScoredPolicy, best_continuations, ended, grown
from .chain import FilterChain
from .policy import Hypothesis, Request
from .steps import Advance
from .stopping import Stopping
from .track import Stop, Track


class _Group:
    """The beams of one group: live ones with their sums, and the finished ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.live: list[Track] = []
        self.running = [0.0] + [OUT] * (size - 1)
        self.ended = False
        self.hypotheses: list[tuple[float, Track, Stop]] = []

    def add(self, score: float, track: Track, stop: Stop) -> None:
        """Takes a finished sequence if there is room or it beats the worst."""
        if len(self.hypotheses) == self.size:
            worst = min(range(self.size), key=lambda i: self.hypotheses[i][0])
            if score <= self.hypotheses[worst][0]:
                return
            del self.hypotheses[worst]
        self.hypotheses.append((score, track, stop))

    def is_settled(self, hoped: float, early_stopping: bool | str) -> bool:
        """Whether the finished ones are complete: enough of them and, unless early_stopping is True, none of the live
        can beat the worst (`hoped` is the best that they may reach)."""
        full = len(self.hypotheses) >= self.size
        return full and (early_stopping is True or min(score for score, _, _ in self.hypotheses) >= hoped)


class GroupBeamPolicy(ScoredPolicy):
    """Live sequences are those of the groups that have not ended, group by group."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        o = request.options
        self._chosen: list[int] = []  # tokens of the groups before, in this step; the chain's diversity filter reads it
        self._chain = FilterChain(request, self._chosen)
        self._stopping = Stopping(request)
        size = o.num_beams // o.num_beam_groups
        self._groups = [_Group(size) for _ in range(o.num_beam_groups)]
        for group in self._groups:
            group.live = [self._live[0]]
        self._count = max(2, 1 + len(o.eos_token_id)) * size
        first_end = o.eos_token_id[0] if o.eos_token_id else 0
        self._padding = first_end if o.pad_token_id is None or o.pad_token_id < 0 else o.pad_token_id

    def results(self) -> list[Hypothesis]:
        every = [item for group in self._groups for item in group.hypotheses]
        every.sort(key=lambda item: item[0])
        best = every[::-1][: self.options.num_return_sequences]
        return [self._hypothesis(track, score, *stop) for score, track, stop in best]

    def _advance(self, logits: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> Advance:
        if not _search.log_softmax_(logits):
            if not self.options.remove_invalid_values:
                raise self._not_a_number()
            logits[np.isnan(logits).any(axis=1) | np.isposinf(logits).any(axis=1)] = np.nan
        shared = len(logits) == 1 and self.options.num_beams > 1  # the prompt's row serves all groups
        length = len(self._live[0].tokens) + 1
        steps: list[tuple[_Group, int, list[Continuation]]] = []
        self._chosen.clear()
        start = 0
        for group in self._groups:
            if group.ended:
                self._chosen += [self._padding] * group.size
                continue
            if shared:
                group.live = [group.live[0].fork()]
            rows = logits.copy() if shared else logits[start : start + len(group.live)]
            steps.append((group, start, self._search_group(group, rows, length)))
            start += 0 if shared else len(rows)
        over = self._stopping.for_all(length)
        if over is not None:
            self._finish_live(over)
        self.finished = all(group.ended for group in self._groups)
        steps = [step for step in steps if not step[0].ended]
        self._live = [track for group, _, _ in steps for track in group.live]
        last = len(logits) - 1  # the copies of the prompt's row are all that row
        parents = [min(start + one.parent, last) for _, start, going in steps for one in going]
        return Advance(parents, [one.token for _, _, going in steps for one in going])

    def _search_group(self, group: _Group, rows: NDArray[np.float32], length: int) -> list[Continuation]:
        """One step of one group; the continuations that go on. `group.live` becomes theirs."""
        before = group.live
        scores = self._chain.apply(rows, [track.tokens for track in before])
        self._keep_scores(before, scores)
        found = best_continuations(scores, group.running, self._count, normalise=False)
        if found is None:
            raise self._not_a_number()
        going: list[Continuation] = []
        for rank, (one, stop) in enumerate(zip(found, self._stops(before, found), strict=True)):
            if stop is None:
                going.append(one)
            elif rank < group.size:  # transformers: a worse one that ends is dropped
                track = ended(before, one)
                group.add(self._final(one.score, track), track, stop)
            if len(going) == group.size:
                break
        o = self.options
        longest = self.max_length if o.early_stopping == "never" and o.length_penalty > 0 else length
        hoped = self._normalised(max(one.score for one in found), longest)
        group.ended = group.is_settled(hoped, o.early_stopping) or not going
        group.live = grown(before, going)
        group.running = [one.score for one in going]
        # A group that ends in this step still chose its tokens in it.
        self._chosen += [one.token for one in going] + [self._padding] * (group.size - len(going))
        return going

    def _stops(self, before: list[Track], found: list[Continuation]) -> list[Stop | None]:
        stops = [self._stopping.at_end_token(one.token) for one in found]
        if self._stopping.reads_text:
            histories = [ended(before, one).tokens for one in found]
            in_text = self._stopping.in_text(histories, self._scores_so_far())
            stops = [ended or read for ended, read in zip(stops, in_text, strict=True)]
        return stops

    def _finish_live(self, stop: Stop) -> None:
        """The live sequences of open groups become hypotheses."""
        for group in self._groups:
            if not group.ended:
                for track, score in zip(group.live, group.running, strict=False):
                    group.add(self._final(score, track), track, stop)
                group.ended = True

    def _stop(self, reason: str) -> None:
        for group in self._groups:
            if len(group.live) < len(group.running):
                group.live = [group.live[0].fork() for _ in group.running]
        self._finish_live(Stop(reason))
