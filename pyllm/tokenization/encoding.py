"""What encoding gives: tokens with their places in the text, and the special tokens put around one text or a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# The two texts of a template, in the place of a token id.
A, B = -1, -2


@dataclass
class Pieces:
    """Tokens of one text without special tokens around them. Offsets and words are filled only where asked for.

    offsets: begin and end in the text, in characters. word_ids: which word (as the tokenizer splits) each belongs to.
    """

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    word_ids: list[int | None] = field(default_factory=list)


@dataclass(frozen=True)
class Encoding:
    """Tokens with special tokens around them; all lists have one entry a token.

    type_ids: token_type_ids. offsets: begin and end in the characters of its own text, (0, 0) for special tokens that
    were put around. sequence_ids: 0 for the text, 1 for its pair, None for special tokens. word_ids: index of the word
    within its text, None for special tokens. special_mask: 1 for special tokens that were put around.
    From `build_inputs`, which knows no texts, offsets and word_ids are empty.
    """

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]
    word_ids: list[int | None]
    special_mask: list[int]


@dataclass(frozen=True)
class Template:
    """Special tokens around a text (`single`) and a pair: (token id, or A, or B; token type id) in order."""

    single: tuple[tuple[int, int], ...] = ((A, 0),)
    pair: tuple[tuple[int, int], ...] = ((A, 0), (B, 1))

    def ids(self, ids: list[int], pair_ids: list[int] | None) -> list[int]:
        """The ids alone: what most callers want."""
        out: list[int] = []
        for id, _ in self.single if pair_ids is None else self.pair:
            if id == A:
                out += ids
            elif id == B:
                out += pair_ids or []
            else:
                out.append(id)
        return out

    def encoding(self, text: Pieces, pair: Pieces | None, placed: bool = True) -> Encoding:
        """placed: whether the pieces have offsets and words."""
        parts = self.single if pair is None else self.pair
        out = Encoding([], [], [], [], [], [])
        for id, type_id in parts:
            pieces = {A: text, B: pair}.get(id)
            count = 1 if pieces is None else len(pieces.ids)
            out.ids.extend([id] if pieces is None else pieces.ids)
            out.type_ids.extend([type_id] * count)
            out.special_mask.extend([int(pieces is None)] * count)
            out.sequence_ids.extend([None if pieces is None else int(id == B)] * count)
            if placed:
                out.offsets.extend([(0, 0)] if pieces is None else pieces.offsets)
                out.word_ids.extend([None] if pieces is None else pieces.word_ids)
        return out

    def count(self, pair: bool) -> int:
        """How many special tokens it puts."""
        return sum(id >= 0 for id, _ in (self.pair if pair else self.single))


def template(single: Sequence[int | str], pair: Sequence[int | str], pair_types: Sequence[int] = ()) -> Template:
    """A template of token ids and the words "A" and "B"; all type ids are 0 unless pair_types says otherwise."""

    def parts(items: Sequence[int | str], types: Sequence[int]) -> tuple[tuple[int, int], ...]:
        ids = [{"A": A, "B": B}[item] if isinstance(item, str) else item for item in items]
        return tuple(zip(ids, types or [0] * len(ids), strict=True))

    return Template(parts(single, ()), parts(pair, pair_types))
