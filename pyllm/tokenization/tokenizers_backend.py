"""Tokenizers of the `tokenizers` library, and reading them from tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from ..errors import TokenizerError
from .encoding import A, B, Pieces, Template
from .settings import AddedToken, Settings
from .streams import HeldStream, Stream, stream_of
from .text_streams import CleanedStream, cleaned

SPACE = "\u2581"  # SentencePiece's visible space


class TokenizersBackend:
    """`core`: the library's tokenizer with all its tokens."""

    def __init__(self, core: tokenizers.Tokenizer, settings: Settings) -> None:
        self._core = core
        core.no_truncation()
        core.no_padding()
        self._doubles_space = settings.class_name == "LlamaTokenizer" and _set_llama_prefix(core, settings)
        self._clean_up = settings.clean_up_tokenization_spaces and not isinstance(core.model, models.BPE)
        self.subword_prefix: str = getattr(core.model, "continuing_subword_prefix", None) or ""
        self.size = 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(id for id, token in core.get_added_tokens_decoder().items() if token.special)
        self.template = template_of(core.post_processor)
        decoder = None if core.decoder is None else json.loads(core.decoder.__getstate__())
        # transformers cleans up after WordPiece and Unigram vocabularies only.
        self._make_stream = stream_of(decoder)

    def encode(self, text: str, target: bool) -> list[int]:
        ids: list[int] = self._encoded(self._spaced(text)).ids
        return ids

    def _encoded(self, text: str) -> tokenizers.Encoding:
        try:
            return self._core.encode(text, add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exceptions
            raise TokenizerError(
                f"[encode] the tokenizer's parts must fit each other, it failed on {text!r:.40}: {error!s:.200}; "
                "download its files again"
            ) from error

    def pieces(self, text: str, target: bool) -> Pieces:
        spaced = self._spaced(text)
        encoding = self._encoded(spaced)
        shift = len(spaced) - len(text)
        offsets = [(max(begin - shift, 0), max(end - shift, 0)) for begin, end in encoding.offsets]
        return Pieces(encoding.ids, offsets, encoding.word_ids)

    def _spaced(self, text: str) -> str:
        """With a space of its own before the text's first one, which Metaspace takes for the one it would put."""
        return SPACE + text if self._doubles_space and text.startswith((" ", SPACE)) else text

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self._core.decode(ids, skip_special_tokens=skip_special_tokens)
        return cleaned(text) if self._clean_up else text

    def token_to_id(self, token: str) -> int | None:
        id: int | None = self._core.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str | None:
        token: str | None = self._core.id_to_token(id)
        return token

    def stream(self) -> Stream:
        stream = HeldStream(self._core.decoder.decode) if self._make_stream is None else self._make_stream()
        return CleanedStream(stream) if self._clean_up else stream

    def join(self, tokens: list[str]) -> str:
        """The text of tokens, without cleaning up: transformers' convert_tokens_to_string."""
        text: str = " ".join(tokens) if self._core.decoder is None else self._core.decoder.decode(tokens)
        return text


def read_tokenizer_json(path: Path, settings: Settings) -> TokenizersBackend:
    """Raises TokenizerError."""
    try:
        core = tokenizers.Tokenizer.from_str(path.read_bytes().decode("utf-8"))  # no line ends to translate
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"[{path.name}] must be UTF-8, {path} is not at byte {error.start}, save it again"
        ) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are no Exceptions
        raise TokenizerError(f"[{path.name}] {path} is not a tokenizer: {error!s:.300}, save it again") from error
    _apply_settings(core, settings)
    add_tokens(core, settings)
    return TokenizersBackend(core, settings)


def _apply_settings(core: tokenizers.Tokenizer, settings: Settings) -> None:
    """tokenizer_config.json wins over tokenizer.json in what both say of normalizing words and of a first space."""
    normalizer = None if core.normalizer is None else json.loads(core.normalizer.__getstate__())
    if normalizer is not None and normalizer.pop("type") == "BertNormalizer":
        names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
        names["tokenize_chinese_chars"] = "handle_chinese_chars"
        said = {name: settings.flag(key, False) for key, name in names.items() if settings.values.get(key) is not None}
        core.normalizer = normalizers.BertNormalizer(**{**normalizer, **said})
    before = None if core.pre_tokenizer is None else json.loads(core.pre_tokenizer.__getstate__())
    if before is not None and before.pop("type") == "ByteLevel" and settings.add_prefix_space is not None:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(**{**before, "add_prefix_space": settings.add_prefix_space})


def template_of(processor: processors.PostProcessor | None) -> Template:
    """The special tokens that a post-processor puts around texts. Raises TokenizerError for two that do it."""
    if processor is None:
        return Template()
    state = json.loads(processor.__getstate__())
    parts = state["processors"] if state["type"] == "Sequence" else [state]
    putting = [part for part in parts if part["type"] != "ByteLevel"]
    if len(putting) > 1:
        kinds = " and ".join(part["type"] for part in putting)
        raise TokenizerError(f"[tokenizer.json] post_processor must put special tokens once, got {kinds}, keep one")
    if not putting:
        return Template()
    part = putting[0]
    if part["type"] == "TemplateProcessing":
        ids = {name: token["ids"] for name, token in part["special_tokens"].items()}
        _check_template(part, ids)
        return Template(_template_parts(part["single"], ids), _template_parts(part["pair"], ids))
    cls, sep = part["cls"][1], part["sep"][1]
    pair: tuple[tuple[int, int], ...]
    if part["type"] == "RobertaProcessing":
        pair = ((cls, 0), (A, 0), (sep, 0), (sep, 0), (B, 0), (sep, 0))
    else:  # BertProcessing
        pair = ((cls, 0), (A, 0), (sep, 0), (B, 1), (sep, 1))
    return Template(((cls, 0), (A, 0), (sep, 0)), pair)


def _check_template(part: dict[str, Any], ids: dict[str, list[int]]) -> None:
    """Raises TokenizerError for special tokens without ids, which the library would only miss when it puts them."""
    put = [item["SpecialToken"]["id"] for item in (*part["single"], *part["pair"]) if "SpecialToken" in item]
    missing = [name for name in dict.fromkeys(put) if name not in ids]
    if missing:
        raise TokenizerError(
            f"[tokenizer.json] post_processor must have the ids of the tokens it puts, it has none of "
            f"{', '.join(map(repr, missing))!s:.120}, add them to its special_tokens"
        )


def _template_parts(items: list[dict[str, Any]], ids: dict[str, list[int]]) -> tuple[tuple[int, int], ...]:
    parts: list[tuple[int, int]] = []
    for item in items:
        ((kind, value),) = item.items()
        wanted = ids[value["id"]] if kind == "SpecialToken" else [{"A": A, "B": B}[value["id"]]]
        parts += [(id, value["type_id"]) for id in wanted]
    return tuple(parts)


def add_tokens(core: tokenizers.Tokenizer, settings: Settings) -> None:
    """Add the tokens of the settings; each must get the id it was declared with."""
    present = {token.content for token in core.get_added_tokens_decoder().values()}
    wanted = [
        token
        for token in settings.added
        if token.id is not None or (token.content not in present and _is_wanted(core, token))
    ]
    core.add_tokens([_library_token(token) for token in wanted])
    for token in wanted:
        got = core.token_to_id(token.content)
        if token.id is not None and token.content not in present and got != token.id:
            raise TokenizerError(
                f"[tokenizer_config.json] added token {token.content!r:.60} is declared as {token.id}, the vocabulary "
                f"gives it {got}, save the folder with transformers so that it has tokenizer.json"
            )


def _is_wanted(core: tokenizers.Tokenizer, token: AddedToken) -> bool:
    return not token.optional or core.token_to_id(token.content) is not None


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _set_llama_prefix(core: tokenizers.Tokenizer, settings: Settings) -> bool:
    """Put a space before the text only, not after every special token, unless the settings say `legacy`.

    The tokenizer.json of Llama and Llama 2 prepends it to each stretch of text between special tokens. Done only for
    that form of the file; returns whether it was.
    """
    normalizer = None if core.normalizer is None else json.loads(core.normalizer.__getstate__())
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if settings.legacy or core.pre_tokenizer is not None:
        return False
    if normalizer != {"type": "Sequence", "normalizers": [prepend, replace]}:
        return False
    scheme = "never" if settings.add_prefix_space is False else "first"
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    return scheme == "first"
