"""`Tokenizer`: the one face of all tokenizers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from ..errors import TokenizerError
from .backend import Backend, Joins
from .detokenizer import Detokenizer
from .encoding import Encoding, Pieces, Template
from .languages import Languages
from .settings import Settings

if TYPE_CHECKING:
    from .chat_template import ChatTemplate

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to ids and back. Safe to use from several threads.

    vocab_size: one more than the largest token id. bos_token_id, eos_token_id, pad_token_id, unk_token_id,
    cls_token_id, sep_token_id, mask_token_id: int or None. mask_token: its text or None. special_ids: the ids that
    skip_special_tokens skips. model_max_length: the longest input in tokens, None if no file says so. padding_side,
    truncation_side: "left" or "right". languages: the language codes it knows, [] for most; src_lang, tgt_lang: the
    languages that `encode` takes when it is not told, None where it must be.
    """

    def __init__(
        self,
        backend: Backend,
        named_ids: dict[str, int],
        model_vocab_size: int = 0,
        settings: Settings | None = None,
        languages: Languages | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """model_vocab_size: ids below it may be decoded, though some have no token (matrices are padded)."""
        settings = settings or Settings("", {}, ())
        self._backend = backend
        self._limit = max(backend.size, model_vocab_size)
        self._languages = languages
        self._named = settings.named
        self.vocab_size = backend.size
        self.special_ids = backend.special_ids
        ids = [named_ids.get(name) for name in NAMES]
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.sep_token_id = ids[:4]
        self.pad_token_id, self.cls_token_id, self.mask_token_id = ids[4:]
        self.mask_token = settings.named.get("mask_token") if self.mask_token_id is not None else None
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.languages = list(languages.codes) if languages else []
        self.src_lang = languages.source if languages else None
        self.tgt_lang = languages.target if languages else None
        self.chat_template = chat_template

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        pair: str | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        target: bool = False,
    ) -> list[int]:
        """Ids of `text`, or of `text` and `pair`; special tokens spelled in them become their ids, as in transformers.

        add_special_tokens: put those in that the model expects around a text (its beginning-of-sequence token, say).
        src_lang, tgt_lang: codes of `languages`; the source's goes with the text, or the target's if `target`. Marian
        models of several target languages instead want tgt_lang said before the source text.
        target: the text is of the target language, as transformers' text_target.
        Raises TokenizerError for what is not text (another type, or a str with lone surrogates) and unknown languages.
        """
        chosen = self._template(src_lang, tgt_lang, target)
        ids = self._backend.encode(_checked_text(text), target)
        others = None if pair is None else self._backend.encode(_checked_text(pair), target)
        return (chosen if add_special_tokens else _bare(chosen)).ids(ids, others)

    def encode_plus(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Encoding:
        """Ids of `text`, or of `text` and `pair`, with token types and with the place of every token. As `encode`."""
        chosen = self._template(src_lang, tgt_lang, False)
        pieces = self._backend.pieces(_checked_text(text), False)
        others = None if pair is None else self._backend.pieces(_checked_text(pair), False)
        return (chosen if add_special_tokens else _bare(chosen)).encoding(pieces, others)

    def build_inputs(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Encoding:
        """Special tokens put around tokens that `encode(..., add_special_tokens=False)` gave, or parts of them.

        offsets and word_ids of the result are empty.
        """
        pieces, others = Pieces(list(ids)), None if pair_ids is None else Pieces(list(pair_ids))
        return self._template(src_lang, tgt_lang, False).encoding(pieces, others, placed=False)

    def num_special_tokens(
        self, pair: bool = False, *, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> int:
        """How many special tokens `encode` puts around a text, or around a pair."""
        return self._template(src_lang, tgt_lang, False).count(pair)

    def _template(self, src_lang: str | None, tgt_lang: str | None, target: bool) -> Template:
        if self._languages is not None:
            return self._languages.choose(self._backend.template, src_lang, tgt_lang, target)
        for name, code in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
            if code is not None:
                raise TokenizerError(f"[encode] this tokenizer has no languages, got {name}={code!r:.40}, leave it out")
        return self._backend.template

    def lang_to_id(self, code: str) -> int:
        """The token id of a language code. Raises TokenizerError with the nearest code for an unknown one."""
        return (self._languages or Languages({}, None, None)).id(code, "lang_to_id")

    def forced_bos_token_id(self, tgt_lang: str | None = None) -> int | None:
        """The first token of a translation into tgt_lang (default: the folder's own); None where none is forced.

        It is what users of M2M100, NLLB and mBART pass as forced_bos_token_id. Raises TokenizerError for an unknown or
        missing language.
        """
        return None if self._languages is None else self._languages.first_token(tgt_lang)

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError for ids out of range."""
        if not isinstance(ids, Iterable):
            raise TokenizerError(f"[decode] ids are a list of integers, got {type(ids).__name__}, put it in a list")
        return self._backend.decode([self._checked(id) for id in ids], skip_special_tokens)

    def detokenizer(
        self,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Detokenizer:
        """A fresh Detokenizer for tokens that follow `prompt_ids`, whose own text does not come out again.

        clean_up_tokenization_spaces: None: as the folder says, else whether spaces before punctuation are taken out.
        """
        clean_up = clean_up_tokenization_spaces
        return Detokenizer(self._backend, self._checked, prompt_ids, skip_special_tokens, clean_up)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary spells it; None where no token has this id."""
        return self._backend.id_to_token(self._checked(id))

    def tokens_to_text(self, tokens: Iterable[str]) -> str:
        """The text of tokens as the vocabulary spells them; other strings among them come out as they are."""
        if isinstance(self._backend, Joins):
            return self._backend.join(list(tokens))
        stream = self._backend.stream()
        return "".join([*map(stream.push, tokens), stream.finish()])

    @property
    def subword_prefix(self) -> str:
        """What the vocabulary puts before tokens that continue a word (WordPiece: "##"); "" without such a mark."""
        return str(getattr(self._backend, "subword_prefix", ""))

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        **template_kwargs: Any,
    ) -> list[int] | str:
        """A conversation as the model was trained to read it: ids, or text with tokenize=False. As transformers'.

        messages: dicts with "role" and "content". tools: JSON schemas, or functions with type hints and a Google
        docstring. chat_template: Jinja source, or the name of one of the folder's templates. More keywords are
        variables of the template. Raises TokenizerError: no template, or the template fails, for any reason.
        """
        from .chat_template import ChatTemplate

        _refuse_tokenizing(template_kwargs)
        text = (self.chat_template or ChatTemplate({})).render(
            messages,
            tools=tools,
            documents=documents,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._named, **template_kwargs},
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

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


# What transformers' apply_chat_template takes for the tokenizer and no template reads -> values that ask for nothing.
_TOKENIZING: dict[str, tuple[Any, ...]] = {
    "return_tensors": (None,),
    "return_dict": (None, False),
    "return_assistant_tokens_mask": (None, False),
    "padding": (None, False),
    "truncation": (None, False),
    "max_length": (None,),
    "tokenizer_kwargs": (None, {}),
}


def _refuse_tokenizing(variables: dict[str, Any]) -> None:
    """Takes them out of a template's variables. Raises TokenizerError for those that ask for something."""
    given = {name: variables.pop(name) for name in _TOKENIZING if name in variables}
    asked = [
        name
        for name, value in given.items()
        if not any(type(value) is type(idle) and value == idle for idle in _TOKENIZING[name])
    ]
    if asked:
        raise TokenizerError(
            f"[chat_template] a conversation becomes a list of all its ids, got {', '.join(asked)}, leave it out"
        )


def _checked_text(text: str) -> str:
    if not isinstance(text, str):
        raise TokenizerError(f"[encode] text must be a str, got {type(text).__name__}, pass a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        char = f"U+{ord(text[error.start]):04X}"
        raise TokenizerError(
            f"[encode] text must be valid Unicode, got the lone surrogate {char} at {error.start}, remove it"
        ) from None
    return text


def _bare(chosen: Template) -> Template:
    """The same without special tokens."""
    return Template(
        tuple(part for part in chosen.single if part[0] < 0), tuple(part for part in chosen.pair if part[0] < 0)
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises TokenizerError if the tokenizer has tokens that a model of vocab_size rows has no weights for.

    The other way round is common: matrices are padded to rounder sizes.
    """
    if tokenizer.vocab_size > vocab_size:
        first = tokenizer.id_to_token(vocab_size)
        raise TokenizerError(
            f"[vocab_size] the model has {vocab_size} tokens, its tokenizer has {tokenizer.vocab_size} "
            f"(token {vocab_size} is {first!r:.40}), take the tokenizer that belongs to these weights"
        )


def named_ids(backend: Backend, named: dict[str, str], *configs: dict[str, Any]) -> dict[str, int]:
    """ "bos_token" etc. -> id: by the tokenizer's own files, else by `bos_token_id` etc. of the configs, first wins."""
    ids = {key: id for key, content in named.items() if (id := backend.token_to_id(content)) is not None}
    for key in NAMES:
        for config in configs:
            value = config.get(f"{key}_id")
            first = value[0] if isinstance(value, list) and value else value
            if type(first) is int and first >= 0:
                ids.setdefault(key, first)
    return ids
