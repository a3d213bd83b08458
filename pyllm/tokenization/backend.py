"""What a tokenizer library gives the one face of all tokenizers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .encoding import Pieces, Template
from .streams import Stream


class Backend(Protocol):
    """Ids and texts were checked before.

    target: whether the text is of the target language, for models with a vocabulary or a splitting of its own for it.
    """

    special_ids: frozenset[int]
    size: int  # one more than the largest id
    template: Template  # what stands around a text where no language matters

    def encode(self, text: str, target: bool) -> list[int]:
        """The tokens of the text without special tokens around them."""
        ...

    def pieces(self, text: str, target: bool) -> Pieces:
        """The same tokens with their places."""
        ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, id: int) -> str | None: ...

    def stream(self) -> Stream: ...


@runtime_checkable
class Joins(Protocol):
    """A backend whose decoder makes text of any strings, tokens or not."""

    def join(self, tokens: list[str]) -> str: ...
