"""Tokenizers of the `tokenizers` library: tokenizer.json, or byte-level BPE from vocab.json and merges.txt."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import TokenizerError
from .settings import AddedToken, Settings
from .streams import HeldStream, Stream, stream_of

# Source: transformers, tokenization_qwen2.py. Words with one mark before them, single digits, punctuation, space.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer")
GENERIC_CLASSES = ("", "PreTrainedTokenizer", "TokenizersBackend")
SPACE = "\u2581"  # SentencePiece's visible space
# transformers' clean_up_tokenization, which it applies to WordPiece and Unigram vocabularies only.
CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class TokenizersBackend:
    """`core`: the library's tokenizer with all its tokens."""

    def __init__(self, core: tokenizers.Tokenizer, settings: Settings) -> None:
        self._core = core
        core.no_truncation()
        core.no_padding()
        self._doubles_space = settings.class_name == "LlamaTokenizer" and _set_llama_prefix(core, settings)
        self._clean_up = settings.clean_up_tokenization_spaces and not isinstance(core.model, models.BPE)
        self.size = 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(id for id, token in core.get_added_tokens_decoder().items() if token.special)
        decoder = None if core.decoder is None else json.loads(core.decoder.__getstate__())
        self._make_stream = None if self._clean_up else stream_of(decoder)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A space of its own before the text's first one, which Metaspace takes for the one it would put.
        if self._doubles_space and text.startswith((" ", SPACE)):
            text = SPACE + text
        ids: list[int] = self._core.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self._core.decode(ids, skip_special_tokens=skip_special_tokens)
        return _cleaned(text) if self._clean_up else text

    def token_to_id(self, token: str) -> int | None:
        id: int | None = self._core.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str | None:
        token: str | None = self._core.id_to_token(id)
        return token

    def stream(self) -> Stream:
        return self._make_stream() if self._make_stream else HeldStream(self._join)

    def _join(self, tokens: list[str]) -> str:
        text: str = self._core.decoder.decode(tokens)
        return _cleaned(text) if self._clean_up else text


def read_tokenizer_json(path: Path, settings: Settings) -> TokenizersBackend:
    """Raises TokenizerError."""
    try:
        core = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"[{path.name}] must be UTF-8, {path} is not at byte {error.start}, save it again"
        ) from error
    except Exception as error:
        raise TokenizerError(f"[{path.name}] {path} is not a tokenizer: {error}, save it again") from error
    _add_tokens(core, settings)
    return TokenizersBackend(core, settings)


def read_vocab_and_merges(folder: Path, settings: Settings) -> TokenizersBackend:
    """Byte-level BPE as GPT-2 or Qwen2 has it. Raises TokenizerError."""
    name = settings.class_name
    if name not in BYTE_LEVEL_CLASSES + GENERIC_CLASSES:
        raise TokenizerError(
            f"[tokenizer] vocab.json and merges.txt are read for {', '.join(BYTE_LEVEL_CLASSES)}, "
            f"{folder} is of {name}, save it with transformers so that it has tokenizer.json"
        )
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:
        raise TokenizerError(f"[tokenizer] vocab.json and merges.txt in {folder} do not fit: {error}") from error
    core = tokenizers.Tokenizer(model)
    prefix = bool(settings.add_prefix_space)
    if name == "Qwen2Tokenizer":
        core.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(prefix, use_regex=False)])
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    _add_tokens(core, settings)
    _set_bos_eos(core, settings)
    return TokenizersBackend(core, settings)


def _add_tokens(core: tokenizers.Tokenizer, settings: Settings) -> None:
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


def _set_bos_eos(core: tokenizers.Tokenizer, settings: Settings) -> None:
    """What surrounds a text: only what the flags ask for. (tokenizer.json has it written down, and its word counts.)"""
    bos = settings.named.get("bos_token") if settings.add_bos_token else None
    eos = settings.named.get("eos_token") if settings.add_eos_token else None
    before = [] if bos is None else [f"{bos}:0"]
    after = [] if eos is None else [f"{eos}:0"]
    core.post_processor = processors.TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", *after, *before, "$B:0", *after],
        special_tokens=[(token, core.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token is not None],
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


def _cleaned(text: str) -> str:
    for old, new in CLEAN_UP.items():
        text = text.replace(old, new)
    return text
