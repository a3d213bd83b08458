"""Which words of a source each word of a target was written from, by the attention between their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenization import Tokenizer
from .seq2seq_sources import PreparedSource

Words = Sequence[int]


def record(
    tokenizer: Tokenizer,
    source: PreparedSource,
    target_ids: Sequence[int],
    attention: NDArray[np.float32],
    clean_up: bool = False,
) -> dict[str, Any]:
    """What return_alignments adds to a record. attention: float32 [target tokens, source tokens], row t what token t
    was chosen with. clean_up: see `text_of`."""
    targets = target_words(tokenizer, target_ids, clean_up)
    return {
        "alignments": aligned(attention, source_words(tokenizer, source), targets),
        "attention": attention,
        "source_tokens": [tokenizer.id_to_token(id) or "" for id in source.ids],
        "target_tokens": [tokenizer.id_to_token(id) or "" for id in target_ids],
    }


def aligned(
    attention: NDArray[np.float32], sources: Sequence[int | None], targets: Sequence[Words]
) -> list[tuple[int, int]]:
    """Pairs (source word, target word), in order of the target: each target token goes with the token it attends to
    most among those that belong to a source word. sources, targets: the words of each token."""
    inside = np.array([word is not None for word in sources], bool)
    if not inside.any():
        return []
    best = np.where(inside, attention, -np.inf).argmax(axis=1)
    pairs = {(word, sources[at]) for at, words in zip(best, targets, strict=True) for word in words}
    return [(source, target) for target, source in sorted(pairs) if source is not None]


def source_words(tokenizer: Tokenizer, source: PreparedSource) -> list[int | None]:
    """For each token that the encoder read the index of its word in text.split(); None for special tokens, for those of
    a task's prefix and for those that are spaces alone."""
    whole = tokenizer.encode_plus(source.text, **source.languages.codes)
    own = [at for at, special in enumerate(whole.special_mask) if not special]
    if source.cut:
        own = own[source.cut :] if source.left else own[: -source.cut]
    word_at = _words_of_characters(source.text, source.begin)
    words = iter(_word(word_at, *whole.offsets[at]) for at in own)
    mask = tokenizer.build_inputs([whole.ids[at] for at in own], **source.languages.codes).special_mask
    return [None if special else next(words) for special in mask]


def text_of(tokenizer: Tokenizer, ids: Sequence[int], clean_up: bool) -> str:
    """The text of a target. clean_up: without spaces before punctuation, whatever the tokenizer's files say."""
    detokenizer = tokenizer.detokenizer(clean_up_tokenization_spaces=clean_up)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])


def target_words(tokenizer: Tokenizer, ids: Sequence[int], clean_up: bool = False) -> list[Words]:
    """For each token the indices in text_of(...).split() of the words it is part of: mostly one, none for special
    tokens. A token without text of its own (a space, part of a character) goes with the one after it."""
    found: list[Words] = []
    waiting: list[int] = []
    before = ""
    for count in range(1, len(ids) + 1):
        text = text_of(tokenizer, ids[:count], clean_up).rstrip()
        words: Words = ()
        if text != before:
            known, now = len(before.split()), len(text.split())
            goes_on = bool(before) and not text[len(before) : len(before) + 1].isspace()
            words = range(max(known - 1, 0) if goes_on else known, max(now, known))
        found.append(words)
        if words:
            for at in waiting:
                found[at] = words[:1]
        if words or ids[count - 1] in tokenizer.special_ids:
            waiting = []
        else:
            waiting.append(count - 1)
        before = text
    return found


def _words_of_characters(text: str, begin: int) -> list[int | None]:
    """The word of text[begin:].split() that each character of the text lies in."""
    words: list[int | None] = [None] * begin
    word, inside = -1, False
    for char in text[begin:]:
        word += not inside and not char.isspace()
        inside = not char.isspace()
        words.append(word if inside else None)
    return words


def _word(word_at: Sequence[int | None], begin: int, end: int) -> int | None:
    """The first word among these characters."""
    return next((word for word in word_at[begin:end] if word is not None), None)
