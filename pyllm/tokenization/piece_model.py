"""One SentencePiece model file: text to piece ids, and the places of pieces in the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from ..errors import TokenizerError

SPACE = "\u2581"  # SentencePiece's visible space
# Appended to a serialized ModelProto: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }. Protocol buffers
# merge repeated sub-messages, so this switches the prefix off and leaves the rest.
NO_PREFIX = b"\x1a\x02\x18\x00"


class Placed(NamedTuple):
    """A piece and the characters of the text it stands for. piece: its text, for unknown ones that of the input."""

    id: int
    begin: int
    end: int
    piece: str = ""


class PieceModel:
    """Raises TokenizerError when the file is not a SentencePiece model. prefixed: with its own space before a text."""

    def __init__(self, path: Path, prefixed: bool = True) -> None:
        self._model = _load(path, b"" if prefixed else NO_PREFIX)
        self.size: int = self._model.get_piece_size()
        self.unknown: int = self._model.unk_id()
        self.specials = frozenset(i for i in range(self.size) if self._model.is_control(i) or self._model.is_unknown(i))
        self.pieces: list[str] = self._model.id_to_piece(list(range(self.size)))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text)
        return ids

    def split(self, text: str) -> list[str]:
        """The pieces as text; unknown ones are stretches of the (normalized) input."""
        pieces: list[str] = self._model.encode(text, out_type=str)
        return pieces

    def place(self, text: str) -> list[Placed]:
        """The pieces of the text with their places; pieces of one expanded character all have its place."""
        placed = list(_read_pieces(self._model.encode(text, out_type="serialized_proto")))
        if not text.isascii():
            at = _character_of_byte(text)
            placed = [Placed(id, at[begin], at[end], piece) for id, begin, end, piece in placed]
        for i in range(len(placed) - 2, -1, -1):
            id, begin, end, piece = placed[i]
            following = placed[i + 1]
            if begin == end == following.begin and self.pieces[id] != SPACE:
                placed[i] = Placed(id, begin, following.end, piece)
        return placed

    def find(self, piece: str) -> int | None:
        # piece_to_id answers with the unknown piece's id for what it does not know.
        id: int = self._model.piece_to_id(piece)
        return id if self.pieces[id] == piece else None


def place_of_word(text: str, begin: int, end: int, stop: int, trim: bool) -> tuple[int, int]:
    """The place of a piece that begins a word; trim: without the spaces, or what counts as such, at its front.

    A space of no width has the place of the character it was put before, as in the `tokenizers` library. stop: where
    the stretch of text ends.
    """
    while trim and begin < end and _is_space(text[begin]):
        begin += 1
    return (begin, end) if begin < end or begin >= stop else (begin, begin + 1)


def _is_space(char: str) -> bool:
    return char.isspace() or char == SPACE or unicodedata.category(char) in ("Cf", "Cc")


def _load(path: Path, patch: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        proto = path.read_bytes()
        if not proto:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=proto + patch)
        model.id_to_piece(list(range(model.get_piece_size())))  # the library does not look whether pieces are UTF-8
        return model
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"[{path.name}] {path} is not a SentencePiece model ({error}), add the folder's tokenizer.json"
        ) from error


def _character_of_byte(text: str) -> list[int]:
    """Index of the character that each UTF-8 byte belongs to, and of the end."""
    at: list[int] = []
    for i, char in enumerate(text):
        at += [i] * len(char.encode())
    return [*at, len(text)]


def _read_pieces(message: bytes) -> Iterator[Placed]:
    """Pieces of a serialized SentencePieceText, places in bytes. (Its Python class would need protobuf.)

    SentencePieceText: repeated SentencePiece pieces = 2. SentencePiece: piece = 1, id = 2, begin = 4, end = 5.
    """
    for field, value in _fields(message):
        if field == 2 and isinstance(value, bytes):
            parts = dict(_fields(value))
            numbers = {field: part for field, part in parts.items() if isinstance(part, int)}
            piece = parts.get(1)
            text = piece.decode("utf-8", "replace") if isinstance(piece, bytes) else ""
            yield Placed(numbers.get(2, 0), numbers.get(4, 0), numbers.get(5, 0), text)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, varint or bytes) of a protocol buffer; fields of fixed width are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
        elif kind == 2:
            size, at = _varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            at += 8 if kind == 1 else 4


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
