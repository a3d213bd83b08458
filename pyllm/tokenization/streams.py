"""From tokens to text one token at a time, holding back what later tokens may still change. One class a decoder.

Each does what a decoder of the `tokenizers` library does to a whole list; the pieces joined are equal to that.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"


class Stream(Protocol):
    """Tokens in, certain text out."""

    def push(self, token: str) -> str: ...

    def mark(self) -> None:
        """What was pushed so far is a prompt: complete text of it that is still held back shall not come out."""

    def finish(self) -> str: ...


def _byte_characters() -> dict[str, int]:
    """The printable stand-ins of bytes in byte-level vocabularies: Latin-1 as itself, the unprintable from U+0100 on.

    Source: GPT-2's encoder.py, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()


class ByteLevelStream:
    """Tokens spell bytes; the bytes of a character may be spread over tokens. Invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        try:
            raw = bytes([BYTE_CHARACTERS[char] for char in token])
        except KeyError:  # an added token, which is plain text
            raw = token.encode()
        return self._decoder.decode(raw)

    def mark(self) -> None:
        """Bytes of an incomplete character are kept: it is new text once it is complete."""

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


class PieceStream:
    """SentencePiece pieces: replacements (U+2581 to space), byte tokens <0x..>, a space stripped at the very start.

    A run of byte tokens is text if all of it is valid UTF-8, else one U+FFFD a byte: so it is held back to its end.
    """

    BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

    def __init__(self, replacements: Sequence[tuple[str, str]], byte_fallback: bool, strip: int, content: str) -> None:
        self._replacements = replacements
        self._byte_fallback = byte_fallback
        self._strip = strip
        self._content = content
        self._run = bytearray()

    def push(self, token: str) -> str:
        for old, new in self._replacements:
            token = token.replace(old, new)
        if self._byte_fallback and (byte := self.BYTE.fullmatch(token)):
            self._run.append(int(byte[1], 16))
            return ""
        return self._stripped(self._take_run() + token)

    def mark(self) -> None:
        if self._take_valid_run() is not None:
            self._strip = 0

    def finish(self) -> str:
        return self._stripped(self._take_run())

    def _take_valid_run(self) -> str | None:
        """The run's text, removed from it; None when there is none or it is not valid UTF-8 (yet)."""
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            return None
        self._run.clear()
        return text or None

    def _take_run(self) -> str:
        text = self._take_valid_run() or REPLACEMENT * len(self._run)
        self._run.clear()
        return text

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != self._content:
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


class MetaspaceStream:
    """The replacement character is a space, and nothing in the first token if the tokenizer puts it there."""

    def __init__(self, replacement: str, prepended: bool) -> None:
        self._replacement = replacement
        self._first = "" if prepended else " "

    def push(self, token: str) -> str:
        text = token.replace(self._replacement, self._first)
        self._first = " "
        return text

    def mark(self) -> None:
        pass

    def finish(self) -> str:
        return ""


class WordStream:
    """No decoder: tokens are joined by spaces."""

    def __init__(self) -> None:
        self._separator = ""

    def push(self, token: str) -> str:
        text = self._separator + token
        self._separator = " "
        return text

    def mark(self) -> None:
        pass

    def finish(self) -> str:
        return ""


class HeldStream:
    """Any other decoder: nothing is certain before the end, then all of it."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._tokens: list[str] = []
        self._marked = 0

    def push(self, token: str) -> str:
        self._tokens.append(token)
        return ""

    def mark(self) -> None:
        self._marked = len(self._decode(self._tokens))

    def finish(self) -> str:
        return self._decode(self._tokens)[self._marked :]


def stream_of(decoder: dict[str, Any] | None) -> Callable[[], Stream] | None:
    """What makes the stream of a decoder given as in tokenizer.json; None when only HeldStream will do."""
    if decoder is None:
        return WordStream
    parts: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return ByteLevelStream
    if kinds == ["Metaspace"]:
        replacement, prepended = parts[0]["replacement"], parts[0].get("prepend_scheme", "always") != "never"
        return lambda: MetaspaceStream(replacement, prepended)
    return _piece_stream_of(parts, kinds)


def _piece_stream_of(parts: list[dict[str, Any]], kinds: list[str]) -> Callable[[], Stream] | None:
    """Replace of plain strings, then ByteFallback, then Fuse, then Strip at the left; each may be absent."""
    at = 0
    replacements: list[tuple[str, str]] = []
    while at < len(parts) and kinds[at] == "Replace" and "String" in parts[at]["pattern"]:
        replacements.append((parts[at]["pattern"]["String"], parts[at]["content"]))
        at += 1
    byte_fallback = kinds[at : at + 1] == ["ByteFallback"]
    at += byte_fallback
    rest = kinds[at:]
    if rest == ["Fuse", "Strip"] and parts[-1]["stop"] == 0:
        strip, content = parts[-1]["start"], parts[-1]["content"]
    elif rest in ([], ["Fuse"]):
        strip, content = 0, " "
    else:
        return None
    return lambda: PieceStream(replacements, byte_fallback, strip, content)
