"""Tokenizers whose vocabulary is one SentencePiece model, numbered and surrounded as their class does it."""

from __future__ import annotations

from pathlib import Path

from ..errors import TokenizerError
from .added_tokens import AddedTokenSplitter
from .encoding import Pieces, Template, template
from .piece_families import Family, Prepared, family_of
from .piece_model import SPACE, PieceModel, Placed, place_of_word
from .settings import AddedToken, Settings
from .streams import MetaspaceStream, PieceStream, Stream
from .text_streams import CleanedStream


class SentencePieceBackend:
    """Raises TokenizerError when the file is not a SentencePiece model, or the class is not known."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._family = family = family_of(settings, path.name)
        self._open_models(path, settings)
        model = self._model
        self._number(family)
        self._added: dict[str, int] = {}
        self._contents: dict[int, str] = {}
        special = sorted(self._ids[piece] for piece in model.specials)
        tokens = [(AddedToken(self._tokens[id]), id) for id in special]
        around = [content for content in (*family.before, *family.after) if content in self._of_token]
        tokens += [(AddedToken(content), self._of_token[content]) for content in around]
        tokens += self._add(settings)
        self.special_ids = frozenset(id for token, id in tokens if token.special)
        self.size = max([len(self._tokens), *(id + 1 for _, id in tokens)])
        self._splitter = AddedTokenSplitter(tokens)
        self.template = self._template(settings)
        self._clean_up = settings.clean_up_tokenization_spaces and family.metaspace

    def _open_models(self, path: Path, settings: Settings) -> None:
        """One model, or, if only the first stretch of a text gets the model's own space, one with and one without."""
        if self._family.per_stretch and settings.add_prefix_space is not False:
            self._model = self._first = PieceModel(path)
        else:
            self._model = PieceModel(path, prefixed=False)
            self._first = self._model if settings.add_prefix_space is False else PieceModel(path)
        # A model that drops spaces at the ends of texts would also drop the one before a word.
        self._spaces_count = self._model.encode(" a") != self._model.encode("a")
        self._prefixes = self._first.pieces[(self._first.encode("a") or [0])[0]].startswith(SPACE)

    def _number(self, family: Family) -> None:
        """Give every piece, and the tokens before and after them, their ids."""
        model = self._model
        after = [content for content in family.after if model.find(content) is None]
        self._tokens = [*family.before, *model.pieces[family.skipped :], *after]
        self._of_token: dict[str, int] = {}
        for id, token in enumerate(self._tokens):
            self._of_token.setdefault(token, id)
        shift = len(family.before) - family.skipped
        self._ids = [self._of_token.get(piece, 0) for piece in model.pieces[: family.skipped]]
        self._ids += range(family.skipped + shift, model.size + shift)

    def _add(self, settings: Settings) -> list[tuple[AddedToken, int]]:
        """Give every added token its id: declared, or that of the token of this name, or the next free one."""
        tokens = []
        for token in settings.added:
            id = self.token_to_id(token.content) if token.id is None else token.id
            if id is None:
                if token.optional:
                    continue
                id = max([len(self._tokens), *(used + 1 for used in self._contents)])
            self._added[token.content] = id
            self._contents[id] = token.content
            tokens.append((token, id))
        return tokens

    def _template(self, settings: Settings) -> Template:
        named, family = settings.named, self._family
        first: list[int | str]
        if family.around == ("A", "A B"):
            bos = [named["bos_token"]] if settings.add_bos_token is not False and "bos_token" in named else []
            eos = [named["eos_token"]] if settings.add_eos_token and "eos_token" in named else []
            before = [id for content in bos if (id := self.token_to_id(content)) is not None]
            after = [id for content in eos if (id := self.token_to_id(content)) is not None]
            first = [*before, "A", *after]
            pair: list[int | str] = [*first, *before, "B", *after]
            return template(first, pair, [0] * len(first) + [1] * len(first))
        single, both = ([self._part(name, settings) for name in words.split()] for words in family.around)
        return template(single, both, family.pair_types)

    def _part(self, name: str, settings: Settings) -> int | str:
        if name in ("A", "B"):
            return name
        content = settings.named.get(name)
        id = None if content is None else self.token_to_id(content)
        if id is None:
            raise TokenizerError(
                f"[tokenizer] {settings.class_name} puts its {name} around texts, the vocabulary has no "
                f"{content!r:.40}, set {name} in tokenizer_config.json"
            )
        return id

    def encode(self, text: str, target: bool) -> list[int]:
        ids: list[int] = []
        for begin, end, token in self._splitter.split(text):
            if token is not None:
                ids.append(token)
            elif self._family.prepare or self._family.split:
                ids += [self._ids[placed.id] for placed in self._place(text[begin:end], begin == 0)]
            else:
                stretch = text[begin:end]
                numbers = self._ids
                ids += [numbers[piece] for piece in self._model_for(stretch, begin == 0).encode(stretch)]
        return ids

    def pieces(self, text: str, target: bool) -> Pieces:
        out = Pieces()
        word = -1
        for start, stop, token in self._splitter.split(text):
            if token is not None:
                word += 1
                out.ids.append(token)
                out.offsets.append((start, stop))
                out.word_ids.append(word)
                continue
            for i, placed in enumerate(self._place(text[start:stop], start == 0)):
                begins_word = self._model.pieces[placed.id].startswith(SPACE)
                begin, end = start + placed.begin, start + placed.end
                word += i == 0 or begins_word
                out.ids.append(self._ids[placed.id])
                if begins_word:
                    begin, end = place_of_word(text, begin, end, stop, self._family.trimmed)
                out.offsets.append((begin, end))
                out.word_ids.append(word)
        return out

    def _model_for(self, stretch: str, first: bool) -> PieceModel:
        if first or (not self._spaces_count and stretch.startswith((" ", SPACE))):
            return self._first
        return self._model

    def _place(self, stretch: str, first: bool) -> list[Placed]:
        """The pieces of a stretch with their places in it."""
        model = self._model_for(stretch, first)
        if self._family.split is not None:
            cuts = list(self._family.split(stretch))
            parts = [(begin, self._place_part(model, stretch[begin:end])) for begin, end in cuts]
            return [Placed(id, at + begin, at + end) for at, part in parts for id, begin, end, _ in part]
        return self._place_part(model, stretch)

    def _place_part(self, model: PieceModel, text: str) -> list[Placed]:
        if self._family.prepare is None:
            return model.place(text)
        prepared: Prepared = self._family.prepare(text)
        placed = model.place("".join(char for char, _, _ in prepared))
        if self._family.digits_before_comma:
            placed = [part for piece in placed for part in _without_comma(model, piece)]
        return [_original(prepared, piece) for piece in placed]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        stream = self.stream()
        skipped = self.special_ids if skip_special_tokens else frozenset()
        tokens = (self.id_to_token(id) for id in ids if id not in skipped)
        return "".join([*(stream.push(token) for token in tokens if token is not None), stream.finish()])

    def token_to_id(self, token: str) -> int | None:
        return self._added[token] if token in self._added else self._of_token.get(token)

    def id_to_token(self, id: int) -> str | None:
        if id in self._contents:
            return self._contents[id]
        return self._tokens[id] if id < len(self._tokens) else None

    def stream(self) -> Stream:
        if not self._family.metaspace:
            return PieceStream([(SPACE, " ")], byte_fallback=True, strip=int(self._prefixes), content=" ")
        stream = MetaspaceStream(SPACE, prepended=True)
        return CleanedStream(stream) if self._clean_up else stream


def _without_comma(model: PieceModel, piece: Placed) -> list[Placed]:
    """A piece of digits and a comma is split again without it. Source: transformers 4, tokenization_albert.py."""
    content = model.pieces[piece.id]
    if not (len(content) > 1 and content[-1] == "," and content[-2].isdigit()):
        return [piece]
    rest = model.encode(content[:-1].replace(SPACE, ""))
    words = [model.pieces[id] for id in rest]
    if content[0] != SPACE and words and words[0][0] == SPACE:
        words = words[1:] if len(words[0]) == 1 else [words[0][1:], *words[1:]]
    begin = max(piece.end - 1 - sum(len(word.lstrip(SPACE)) for word in words), piece.begin)
    out = []
    for i, word in enumerate(words):
        start = piece.begin if i == 0 else begin
        begin += len(word.lstrip(SPACE))
        out.append(Placed(_known(model, word), start, begin))
    return [*out, Placed(_known(model, ","), piece.end - 1, piece.end)]


def _known(model: PieceModel, piece: str) -> int:
    found = model.find(piece)
    return model.unknown if found is None else found


def _original(prepared: Prepared, piece: Placed) -> Placed:
    """The place of a piece in the text that was prepared."""
    if piece.begin >= len(prepared):
        end = prepared[-1][2] if prepared else 0
        return Placed(piece.id, end, end)
    begin = prepared[piece.begin][1]
    return Placed(piece.id, begin, max(prepared[piece.end - 1][2], begin) if piece.end > piece.begin else begin)
