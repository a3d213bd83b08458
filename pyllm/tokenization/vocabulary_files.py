"""Tokenizers of the `tokenizers` library from older files: vocab.json with merges.txt, or vocab.txt."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import TokenizerError
from .class_defaults import BERT_CLASSES, ROBERTA_CLASSES
from .settings import Settings, is_unicode
from .tokenizers_backend import TokenizersBackend, add_tokens

# Source: transformers, tokenization_qwen2.py. Words with one mark before them, single digits, punctuation, space.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GENERIC_CLASSES = ("", "PreTrainedTokenizer", "TokenizersBackend")
PLAIN_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
BYTE_LEVEL_CLASSES = (*PLAIN_CLASSES, *ROBERTA_CLASSES, "BlenderbotTokenizer", "DebertaTokenizer")
WORDPIECE_CLASSES = (*BERT_CLASSES, "MPNetTokenizer")


def read_vocab_and_merges(folder: Path, settings: Settings) -> TokenizersBackend:
    """Byte-level BPE as GPT-2 has it, with the additions of each class. Raises TokenizerError."""
    name = settings.class_name
    _check_class("vocab.json and merges.txt", folder, name, BYTE_LEVEL_CLASSES)
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:
        raise TokenizerError(f"[tokenizer] vocab.json and merges.txt in {folder} do not fit: {error}") from error
    core = tokenizers.Tokenizer(model)
    prefix = settings.flag("add_prefix_space", name == "BlenderbotTokenizer")
    if name in ("Qwen2Tokenizer", "GPTNeoXTokenizer"):
        core.normalizer = normalizers.NFC()
    if name == "Qwen2Tokenizer":
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(prefix, use_regex=False)])
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    add_tokens(core, settings)
    core.post_processor = _byte_level_processor(core, settings, prefix)
    return TokenizersBackend(core, settings)


def _byte_level_processor(core: tokenizers.Tokenizer, settings: Settings, prefix: bool) -> processors.PostProcessor:
    name = settings.class_name
    if name in ROBERTA_CLASSES:
        sep, cls = _required(core, settings, "sep_token"), _required(core, settings, "cls_token")
        return processors.RobertaProcessing(sep, cls, settings.flag("trim_offsets", True), prefix)
    if name == "DebertaTokenizer":
        return _around_cls_sep(core, settings)
    if name == "BlenderbotTokenizer":  # as transformers 4; 5 forgot the end token of vocab.json and merges.txt
        eos = _required(core, settings, "eos_token")
        return _template(["$A:0", f"{eos[0]}:0"], ["$A:0", "$B:0", f"{eos[0]}:0"], [eos])
    # What surrounds a text: only what the flags ask for. (tokenizer.json has it written down, and its word counts.)
    bos = [_required(core, settings, "bos_token")] if settings.add_bos_token and "bos_token" in settings.named else []
    eos_ = [_required(core, settings, "eos_token")] if settings.add_eos_token and "eos_token" in settings.named else []
    before, after = [token for token, _ in bos], [token for token, _ in eos_]
    first = [*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)]
    second = [*(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    return _template(first, [*first, *second], [*bos, *eos_])


def read_vocab_txt(folder: Path, settings: Settings) -> TokenizersBackend:
    """WordPiece as BERT has it. Raises TokenizerError."""
    name = settings.class_name
    _check_class("vocab.txt", folder, name, WORDPIECE_CLASSES)
    unk = settings.named.get("unk_token", "[UNK]")
    vocabulary = _read_lines(folder / "vocab.txt")
    if unk not in vocabulary:
        raise TokenizerError(f"[vocab.txt] the unknown token {unk!r:.40} must be a line of it, it is not, add it")
    core = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.flag("strip_accents", False)
        if settings.values.get("strip_accents") is not None
        else None,
        lowercase=settings.flag("do_lower_case", True),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    add_tokens(core, settings)
    _keep_whole(core, settings)
    if name == "MPNetTokenizer":
        sep, cls = _required(core, settings, "sep_token"), _required(core, settings, "cls_token")
        core.post_processor = processors.RobertaProcessing(sep, cls, True, False)
    else:
        core.post_processor = _around_cls_sep(core, settings)
    return TokenizersBackend(core, settings)


def _read_lines(path: Path) -> dict[str, int]:
    """Line -> its number, the last one where a line appears twice. Raises TokenizerError."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"[{path.name}] must be UTF-8, {path} is not at byte {error.start}, save it again"
        ) from error
    except OSError as error:
        raise TokenizerError(f"[{path.name}] {path} cannot be read: {error.strerror}, check the file") from error
    if lines[-1] == "":
        lines.pop()
    return {line: number for number, line in enumerate(lines)}


def _keep_whole(core: tokenizers.Tokenizer, settings: Settings) -> None:
    """never_split: words that the normalizer and the splitting leave alone. Those without an id mean nothing."""
    words = settings.values.get("never_split") or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word and is_unicode(word) for word in words):
        raise TokenizerError(
            f"[tokenizer_config.json] never_split must be a list of words, got {words!r:.60}, correct it"
        )
    known = [word for word in words if core.token_to_id(word) is not None]
    core.add_tokens([tokenizers.AddedToken(word, single_word=True, normalized=False) for word in known])


def _around_cls_sep(core: tokenizers.Tokenizer, settings: Settings) -> processors.PostProcessor:
    cls, sep = _required(core, settings, "cls_token"), _required(core, settings, "sep_token")
    first = [f"{cls[0]}:0", "$A:0", f"{sep[0]}:0"]
    return _template(first, [*first, "$B:1", f"{sep[0]}:1"], [cls, sep])


def _template(single: list[str], pair: list[str], tokens: list[tuple[str, int]]) -> processors.PostProcessor:
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(dict.fromkeys(tokens)))


def _required(core: tokenizers.Tokenizer, settings: Settings, key: str) -> tuple[str, int]:
    content = settings.named.get(key)
    id = None if content is None else core.token_to_id(content)
    if content is None or id is None:
        raise TokenizerError(
            f"[tokenizer] {settings.class_name} puts its {key} around texts, the vocabulary has no {content!r:.40}, "
            f"set {key} in tokenizer_config.json"
        )
    return content, id


def _check_class(files: str, folder: Path, name: str, known: tuple[str, ...]) -> None:
    generic = GENERIC_CLASSES if known is BYTE_LEVEL_CLASSES else ()
    if name not in known + generic:
        raise TokenizerError(
            f"[tokenizer] {files} are read for {', '.join(known)}, "
            f"{folder} is of {name or 'no class'}, save it with transformers so that it has tokenizer.json"
        )
