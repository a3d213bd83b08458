"""`Detokenizer`: turns tokens into text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import SupportsIndex

from .backend import Backend
from .streams import Stream
from .text_streams import CleanedStream


class Detokenizer:
    """Text of a growing list of tokens. Its pieces joined equal `decode` of all ids; none ends inside a character.

    With a prompt, the pieces are what `decode` of prompt and new ids has after `decode` of the prompt.
    """

    def __init__(
        self,
        backend: Backend,
        check: Callable[[SupportsIndex], int],
        prompt_ids: Sequence[int],
        skip_special: bool,
        clean_up: bool | None = None,
    ) -> None:
        """check: gives an id as an int, or raises TokenizerError. clean_up: None: as the backend does."""
        self._check = check
        self._id_to_token = backend.id_to_token
        self._skipped: frozenset[int] = backend.special_ids if skip_special else frozenset()
        self._stream: Stream = backend.stream()
        if clean_up is not None:
            bare = self._stream.inner if isinstance(self._stream, CleanedStream) else self._stream
            self._stream = CleanedStream(bare) if clean_up else bare
        for id in prompt_ids:
            self.push(id)
        if len(prompt_ids):
            self._stream.mark()

    def push(self, id: SupportsIndex) -> str:
        """The text that is certain now and was not before; often "". Amortised O(1). Raises TokenizerError."""
        number = self._check(id)
        token = None if number in self._skipped else self._id_to_token(number)
        return "" if token is None else self._stream.push(token)

    def finish(self) -> str:
        """What is still held back."""
        return self._stream.finish()
