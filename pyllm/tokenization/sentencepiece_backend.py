"""SentencePiece models (tokenizer.model) with Llama's rules around them: added tokens, prefix space, byte fallback."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from ..errors import TokenizerError
from .added_tokens import AddedTokenSplitter
from .settings import AddedToken, Settings
from .streams import PieceStream, Stream

SPACE = "\u2581"  # SentencePiece's visible space
# Appended to a serialized ModelProto: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }. Protocol buffers
# merge repeated sub-messages, so this switches the prefix off and leaves the rest.
NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceBackend:
    """Raises TokenizerError when the file is not a SentencePiece model."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._bare = _load(path, NO_PREFIX)
        self._prefixed = self._bare if settings.add_prefix_space is False else _load(path)
        self._legacy = settings.legacy
        self._prefixes = self._prefixed.encode("a", out_type=str)[:1] != self._bare.encode("a", out_type=str)[:1]
        self._pieces: int = self._bare.get_piece_size()
        self._added: dict[str, int] = {}
        self._contents: dict[int, str] = {}
        special = {id for id in range(self._pieces) if self._bare.is_control(id) or self._bare.is_unknown(id)}
        tokens = [(AddedToken(self._bare.id_to_piece(id)), id) for id in sorted(special)]
        tokens += self._add(settings)
        self.special_ids = frozenset(special | {id for token, id in tokens if token.special})
        self.size = max([self._pieces, *(id + 1 for _, id in tokens)])
        self._splitter = AddedTokenSplitter(tokens)
        bos, eos = settings.named.get("bos_token"), settings.named.get("eos_token")
        self._before = self._ids(bos, settings.add_bos_token is not False)
        self._after = self._ids(eos, bool(settings.add_eos_token))

    def _add(self, settings: Settings) -> list[tuple[AddedToken, int]]:
        """Give every added token its id: declared, or that of the piece of this name, or the next free one."""
        tokens = []
        for token in settings.added:
            id = self.token_to_id(token.content) if token.id is None else token.id
            if id is None:
                if token.optional:
                    continue
                id = max([self._pieces, *(used + 1 for used in self._contents)])
            self._added[token.content] = id
            self._contents[id] = token.content
            tokens.append((token, id))
        return tokens

    def _ids(self, token: str | None, wanted: bool) -> list[int]:
        id = self.token_to_id(token) if wanted and token is not None else None
        return [] if id is None else [id]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._splitter.split(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                model = self._prefixed if i == 0 or self._legacy else self._bare
                ids += model.encode(part)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        stream = self.stream()
        skipped = self.special_ids if skip_special_tokens else frozenset()
        tokens = (self.id_to_token(id) for id in ids if id not in skipped)
        return "".join([*(stream.push(token) for token in tokens if token is not None), stream.finish()])

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        # piece_to_id answers with the unknown token's id for what it does not know.
        id: int = self._bare.piece_to_id(token)
        return id if self._bare.id_to_piece(id) == token else None

    def id_to_token(self, id: int) -> str | None:
        if id in self._contents:
            return self._contents[id]
        piece: str | None = self._bare.id_to_piece(id) if id < self._pieces else None
        return piece

    def stream(self) -> Stream:
        return PieceStream([(SPACE, " ")], byte_fallback=True, strip=int(self._prefixes), content=" ")


def _load(path: Path, patch: bytes = b"") -> sentencepiece.SentencePieceProcessor:
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
