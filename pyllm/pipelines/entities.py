"""Entities from token labels: grouping tokens of one word and words of one entity. Pure functions, no models.

The strategies are transformers': "simple" groups neighbouring tokens by their labels' B- and I- prefixes; "first",
"average" and "max" first give each word one label, from its first token, from the mean of its tokens' scores, or from
its most certain token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRATEGIES = ("none", "simple", "first", "average", "max")
WORD_STRATEGIES = ("first", "average", "max")

Entity = dict[str, Any]
Join = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Token:
    """A token that is no special one. scores: [labels], probabilities. continues: it belongs to the word before it."""

    word: str
    scores: NDArray[np.floating[Any]] = field(repr=False)
    index: int
    start: int
    end: int
    continues: bool


def entities(tokens: Sequence[Token], labels: Mapping[int, str], strategy: str, join: Join) -> list[Entity]:
    """What one window holds. join: tokens as the vocabulary spells them -> text.

    "none": a dict for each token with entity, score, index, word, start, end; else for each group of tokens with
    entity_group, score (the mean of its tokens or words), word, start, end.
    """
    if strategy in WORD_STRATEGIES:
        return _grouped([_labelled_word(word, labels, strategy, join) for word in _words(tokens)], join)
    labelled = [_labelled(token, labels) for token in tokens]
    return labelled if strategy == "none" else _grouped(labelled, join)


def without_overlaps(found: Sequence[Entity]) -> list[Entity]:
    """Of entities from several windows that overlap, the longest, then the most certain, in order of their starts."""
    kept: list[Entity] = []
    for entity in sorted(found, key=lambda entity: entity["start"]):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            if _weight(entity) > _weight(kept[-1]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _labelled(token: Token, labels: Mapping[int, str]) -> Entity:
    best = int(token.scores.argmax())
    return {
        "entity": labels[best],
        "score": float(token.scores[best]),
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _labelled_word(tokens: Sequence[Token], labels: Mapping[int, str], strategy: str, join: Join) -> Entity:
    if strategy == "first":
        scores = tokens[0].scores
    elif strategy == "max":
        scores = max(tokens, key=lambda token: float(token.scores.max())).scores
    else:
        scores = np.mean([token.scores for token in tokens], axis=0)
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": join([token.word for token in tokens]),
        "start": tokens[0].start,
        "end": tokens[-1].end,
    }


def _grouped(labelled: Sequence[Entity], join: Join) -> list[Entity]:
    """Neighbours of one type become one entity; a B- begins a new one. Labels without a prefix count as I-."""
    groups: list[list[Entity]] = []
    for entity in labelled:
        begins, kind = _prefix_and_type(entity["entity"])
        if groups and not begins and kind == _prefix_and_type(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group])),
            "word": join([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _prefix_and_type(label: str) -> tuple[bool, str]:
    """(whether it begins an entity, its type)"""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label
