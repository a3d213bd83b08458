"""What a search says of a step: what becomes of its sequences, and what a device or something cheaper may do for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from . import _search
from .changes import Changes


@dataclass(frozen=True)
class Advance:
    """What becomes of a group after one step. The new live sequence i is the previous live sequence
    `parents[i]` followed by `tokens[i]`; a previous sequence named by nobody has ended or was dropped (its
    cache blocks can go), one named twice forks. Both lists are empty once the group has finished.
    """

    parents: list[int]
    tokens: list[int]


class Choice(NamedTuple):
    """How a device chooses the next tokens of a policy's live sequences; no more is to be done with their logits.

    cuts        temperature, top-k, top-p, min-p; None: the most likely token
    sequences   of each token its sequence's number, for the random numbers of (seed, seed_index, sequence, step)
    steps       of each token
    changes     of each row, to be made first
    """

    cuts: tuple[float, int, float, float] | None
    sequences: list[int]
    steps: list[int]
    changes: Sequence[Changes]
    seed: int = 0
    seed_index: int = 0


class Ranking(NamedTuple):
    """How many continuations of each live sequence `Policy.rank` needs, after which changes; None: of the logits, whose
    values are to be log-probabilities."""

    continuations: int
    changes: Sequence[Changes] | None


@dataclass(frozen=True)
class Proposal:
    """Next tokens of one live sequence as something cheaper guesses them. drawn_from: the distribution that each was
    drawn from; None when they were not drawn (looked up, or the most likely ones)."""

    tokens: list[int] = field(default_factory=list)
    drawn_from: list[_search.Weights] | None = None


@dataclass(frozen=True)
class Verified(Advance):
    """An Advance by several tokens: previous live sequence i grew by `grown[i]` of them, all but the last as proposed.
    `tokens` are the last ones."""

    grown: list[int]
