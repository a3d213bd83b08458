"""Tokenizers that split by SentencePiece and number the pieces by vocab.json: Marian and M2M100."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.json_file import read_json_object
from ..errors import TokenizerError
from .added_tokens import AddedTokenSplitter
from .encoding import Pieces, template
from .languages import Languages, code_token, codes_of
from .piece_model import SPACE, PieceModel, place_of_word
from .settings import AddedToken, Settings
from .streams import Stream
from .text_streams import CleanedStream, RunsStream

LANGUAGE = re.compile(r">>.*?<<")  # Marian: which language to translate into, before the text


class NamedPiecesBackend:
    """source, target: the models that split texts of each side. ids, target_ids: their vocabularies.

    codes_first: a text may begin with >>language<<. separator: what is decoded after a special token.
    """

    def __init__(
        self,
        settings: Settings,
        models: tuple[PieceModel, PieceModel],
        vocabularies: tuple[dict[str, int], dict[str, int]],
        languages: list[str],
        codes_first: bool,
        separator: str,
    ) -> None:
        """languages: tokens that follow the vocabulary."""
        self._models = models
        self._ids, self._target_ids = vocabularies
        self._codes_first = codes_first
        self._separator = separator
        base = 1 + max(self._ids.values(), default=-1)
        self._added = {content: base + i for i, content in enumerate(languages)}
        tokens = [(AddedToken(content), id) for content, id in self._added.items()]
        for token in settings.added:
            id = self.token_to_id(token.content) if token.id is None else token.id
            if id is None:
                if token.optional:
                    continue
                id = max(base, *(used + 1 for used in self._added.values()), 0)
            self._added[token.content] = id
            tokens.append((token, id))
        self._tokens = {id: content for content, id in [*self._target_ids.items(), *self._added.items()]}
        self.special_ids = frozenset(id for token, id in tokens if token.special)
        self._special = frozenset(token.content for token, _ in tokens if token.special)
        self.size = 1 + max([*self._tokens, *self._ids.values()])
        self._splitter = AddedTokenSplitter(tokens)
        self._unknown = self._required(settings, "unk_token")
        eos = self._required(settings, "eos_token")
        self.template = template(["A", eos], ["A", "B", eos])
        self._clean_up = settings.clean_up_tokenization_spaces
        self._silent = frozenset(model.pieces[id] for model in models for id in model.specials)

    def _required(self, settings: Settings, name: str) -> int:
        content = settings.named.get(name)
        id = None if content is None else self.token_to_id(content)
        if id is None:
            raise TokenizerError(
                f"[vocab.json] {settings.class_name} needs its {name}, the vocabulary has no {content!r:.40}, "
                f"set {name} in tokenizer_config.json"
            )
        return id

    def encode(self, text: str, target: bool) -> list[int]:
        model, ids = self._models[target], self._target_ids if target else self._ids
        out: list[int] = []
        for begin, end, token in self._splitter.split(text):
            if token is not None:
                out.append(token)
                continue
            code = self._code(text[begin:end])
            out += [self._number(code, ids)] if code else []
            out += [self._number(piece, ids) for piece in model.split(text[begin + len(code) : end])]
        return out

    def pieces(self, text: str, target: bool) -> Pieces:
        model, ids = self._models[target], self._target_ids if target else self._ids
        out = Pieces()
        word = -1

        def add(id: int, begin: int, end: int, new_word: bool) -> None:
            nonlocal word
            word += new_word
            out.ids.append(id)
            out.offsets.append((begin, end))
            out.word_ids.append(word)

        for begin, end, token in self._splitter.split(text):
            if token is not None:
                add(token, begin, end, True)
                continue
            code = self._code(text[begin:end])
            start = begin + len(code)
            if code:
                add(self._number(code, ids), begin, start, True)
            for i, placed in enumerate(model.place(text[start:end])):
                first, last = start + placed.begin, start + placed.end
                begins_word = placed.piece.startswith(SPACE)
                if begins_word:
                    first, last = place_of_word(text, first, last, end, trim=True)
                add(self._number(placed.piece, ids), first, last, begins_word or i == 0)
        return out

    def _code(self, stretch: str) -> str:
        """The language code that the stretch begins with, or ""."""
        found = LANGUAGE.match(stretch) if self._codes_first else None
        return found[0] if found else ""

    def _number(self, piece: str, ids: Mapping[str, int]) -> int:
        return ids.get(piece, self._unknown)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        stream = self.stream()
        skipped = self.special_ids if skip_special_tokens else frozenset()
        tokens = (self.id_to_token(id) for id in ids if id not in skipped)
        return "".join([*(stream.push(token) for token in tokens if token is not None), stream.finish()])

    def token_to_id(self, token: str) -> int | None:
        return self._added[token] if token in self._added else self._ids.get(token)

    def id_to_token(self, id: int) -> str | None:
        return self._tokens.get(id)

    def stream(self) -> Stream:
        known = self._is_piece
        stream = RunsStream(known, self._silent, self._special, self._separator, visible=not self._codes_first)
        return CleanedStream(stream) if self._clean_up else stream

    def _is_piece(self, token: str) -> bool:
        return any(model.find(token) is not None for model in self._models)


def read_marian(folder: Path, settings: Settings) -> tuple[NamedPiecesBackend, Languages | None]:
    """source.spm, target.spm and vocab.json (with separate_vocabs, target_vocab.json too). Raises TokenizerError."""
    models = (PieceModel(folder / "source.spm"), PieceModel(folder / "target.spm"))
    ids = _read_ids(folder / "vocab.json")
    separate = settings.flag("separate_vocabs", False)
    target_ids = _read_ids(folder / "target_vocab.json") if separate else ids
    backend = NamedPiecesBackend(settings, models, (ids, target_ids), [], codes_first=True, separator=" ")
    codes = {token[2:-2]: id for token, id in ids.items() if LANGUAGE.fullmatch(token)}
    eos = backend.token_to_id(settings.named["eos_token"])
    return backend, Languages(codes, None, None, "asked", eos or 0) if codes else None


def read_m2m100(folder: Path, settings: Settings) -> NamedPiecesBackend:
    """sentencepiece.bpe.model and vocab.json, whose last id is followed by the languages. Raises TokenizerError.

    transformers marks the languages as special only where the folder lists them as additional_special_tokens, as all
    published ones do; here they always are.
    """
    model = PieceModel(folder / "sentencepiece.bpe.model")
    ids = _read_ids(folder / "vocab.json")
    languages = [code_token(settings, code) for code in codes_of(settings)]
    return NamedPiecesBackend(settings, (model, model), (ids, ids), languages, codes_first=False, separator="")


def _read_ids(path: Path) -> dict[str, int]:
    ids = read_json_object(path, TokenizerError)
    if not all(type(id) is int and 0 <= id < 1 << 24 for id in ids.values()):
        raise TokenizerError(f"[{path.name}] must map pieces to non-negative ids, {path} does not, save it again")
    return ids
