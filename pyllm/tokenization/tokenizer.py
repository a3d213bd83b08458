"""`Tokenizer`: the one face of all tokenizers, and `Detokenizer`, which turns tokens into text as they come."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsIndex

from ..errors import TokenizerError
from .streams import Stream


class Backend(Protocol):
    """What a tokenizer library gives. Ids and texts were checked before."""

    special_ids: frozenset[int]
    size: int  # one more than the largest id

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, id: int) -> str | None: ...

    def stream(self) -> Stream: ...


class Tokenizer:
    """Text to ids and back. Safe to use from several threads.

    vocab_size: one more than the largest token id. bos_token_id, eos_token_id, pad_token_id, unk_token_id: int or None.
    special_ids: the ids that skip_special_tokens skips.
    """

    def __init__(self, backend: Backend, named_ids: dict[str, int], model_vocab_size: int = 0) -> None:
        """model_vocab_size: ids below it may be decoded, though some have no token (matrices are padded)."""
        self._backend = backend
        self._limit = max(backend.size, model_vocab_size)
        self.vocab_size = backend.size
        self.special_ids = backend.special_ids
        self.bos_token_id = named_ids.get("bos_token")
        self.eos_token_id = named_ids.get("eos_token")
        self.pad_token_id = named_ids.get("pad_token")
        self.unk_token_id = named_ids.get("unk_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens spelled in it become their ids, as in transformers.

        add_special_tokens: put those in that the model expects around a text (its beginning-of-sequence token, say).
        Raises TokenizerError for what is not text: another type, or a str with lone surrogates.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"[encode] text must be a str, got {type(text).__name__}, pass a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            char = f"U+{ord(text[error.start]):04X}"
            raise TokenizerError(
                f"[encode] text must be valid Unicode, got the lone surrogate {char} at {error.start}, remove it"
            ) from None
        return self._backend.encode(text, add_special_tokens)

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError for ids out of range."""
        return self._backend.decode([self._checked(id) for id in ids], skip_special_tokens)

    def detokenizer(self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh Detokenizer for tokens that follow `prompt_ids`, whose own text does not come out again."""
        return Detokenizer(self, self._backend, prompt_ids, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary spells it; None where no token has this id."""
        return self._backend.id_to_token(self._checked(id))

    def _checked(self, id: SupportsIndex) -> int:
        try:
            number = operator.index(id)
        except TypeError:
            raise TokenizerError(f"[decode] ids are integers, got a {type(id).__name__}, convert it") from None
        if not 0 <= number < self._limit:
            raise TokenizerError(
                f"[decode] ids are from 0 to {self._limit - 1}, got {number}, check the tokens"
            ) from None
        return number

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._backend).__name__}, vocab_size={self.vocab_size})"


class Detokenizer:
    """Text of a growing list of tokens. Its pieces joined equal `decode` of all ids; none ends inside a character.

    With a prompt, the pieces are what `decode` of prompt and new ids has after `decode` of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, backend: Backend, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._check = tokenizer._checked
        self._id_to_token = backend.id_to_token
        self._skipped: frozenset[int] = backend.special_ids if skip_special else frozenset()
        self._stream: Stream = backend.stream()
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


def named_ids(backend: Backend, named: dict[str, str], *configs: dict[str, Any]) -> dict[str, int]:
    """ "bos_token" etc. -> id: by the tokenizer's own files, else by `bos_token_id` etc. of the configs, first wins."""
    ids = {key: id for key, content in named.items() if (id := backend.token_to_id(content)) is not None}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        for config in configs:
            value = config.get(f"{key}_id")
            first = value[0] if isinstance(value, list) and value else value
            if type(first) is int and first >= 0:
                ids.setdefault(key, first)
    return ids
