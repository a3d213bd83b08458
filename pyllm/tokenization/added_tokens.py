"""Finding added tokens in raw text, as the `tokenizers` library does it, for libraries that have none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .settings import AddedToken


class AddedTokenSplitter:
    """Splits text at added tokens: leftmost, then longest match."""

    def __init__(self, tokens: Iterable[tuple[AddedToken, int]]) -> None:
        self._tokens = {token.content: (token, id) for token, id in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """The text in order as (begin, end, id): stretches without added tokens (id None, never empty), and tokens.

        A token's stretch includes the spaces it swallows.
        """
        begin = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, id = self._tokens[match[0]]
            first, last = match.span()
            if first < begin or (token.single_word and _touches_word(text, first, last)):
                continue
            if token.lstrip:
                first = begin + len(text[begin:first].rstrip())
            if token.rstrip:
                last = len(text) - len(text[last:].lstrip())
            if begin < first:
                yield begin, first, None
            yield first, last, id
            begin = last
        if begin < len(text):
            yield begin, len(text), None


def _touches_word(text: str, first: int, last: int) -> bool:
    return bool(re.match(r"\w", text[last : last + 1]) or re.match(r"\w", text[first - 1 : first] if first else ""))
