"""How tokenizer classes use a SentencePiece model: numbering of its pieces, preparation of texts, special tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import TokenizerError
from .languages import codes_of
from .settings import Settings

# Each character of a prepared text, with begin and end of what it was in the original.
Prepared = list[tuple[str, int, int]]


@dataclass(frozen=True)
class Family:
    """before: tokens that stand before the model's pieces, of which the first `skipped` have no place of their own
    (some are among `before` by name). after: tokens that stand after the pieces. These are special, matched in text.
    per_stretch: every stretch of text between added tokens begins with the model's own space, not only the first.
    metaspace: decoded as the `tokenizers` library's Metaspace does. trimmed: places do not include spaces before words.
    around: the special tokens around a text and a pair, as names of tokens and A, B; pair_types: types of the latter.
    prepare: what is done to a stretch before the model sees it. split: where a stretch is cut first.
    """

    before: tuple[str, ...] = ()
    skipped: int = 0
    after: tuple[str, ...] = ()
    per_stretch: bool = True
    metaspace: bool = True
    trimmed: bool = True
    around: tuple[str, str] = ("cls_token A sep_token", "cls_token A sep_token B sep_token")
    pair_types: tuple[int, ...] = ()
    prepare: Callable[[str], Prepared] | None = None
    split: Callable[[str], Iterator[tuple[int, int]]] | None = None
    digits_before_comma: bool = False


FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
BERT_PAIR = (0, 0, 0, 1, 1)
ROBERTA_AROUND = ("cls_token A sep_token", "cls_token A sep_token sep_token B sep_token")


def _llama(settings: Settings) -> Family:
    return Family(per_stretch=settings.legacy, metaspace=False, trimmed=False, around=("A", "A B"))


def _t5(settings: Settings) -> Family:
    count = settings.count("extra_ids", 100)
    return Family(
        after=tuple(f"<extra_id_{i}>" for i in range(count - 1, -1, -1)),
        per_stretch=settings.flag("legacy", True),
        around=("A eos_token", "A eos_token B eos_token"),
    )


def _albert(settings: Settings) -> Family:
    lower, accents = settings.flag("do_lower_case", True), settings.flag("keep_accents", False)
    return Family(
        pair_types=BERT_PAIR, prepare=lambda text: prepare_albert(text, lower, accents), digits_before_comma=True
    )


def _deberta(settings: Settings) -> Family:
    return Family(
        after=("[MASK]",),
        trimmed=False,
        pair_types=BERT_PAIR,
        prepare=lower_case if settings.flag("do_lower_case", False) else None,
        split=split_punctuation if settings.flag("split_by_punct", False) else None,
    )


def _pegasus(settings: Settings) -> Family:
    offset = settings.count("offset", 103, 1 << 16)
    around = ("A eos_token", "A B eos_token")
    if offset == 0:  # BigBird-Pegasus: the pieces are numbered as they are
        return Family(trimmed=False, around=around)
    sentence, mask = settings.values.get("mask_token_sent", "<mask_1>"), settings.named.get("mask_token", "<mask_2>")
    sentence = sentence.get("content") if isinstance(sentence, dict) else sentence
    if not isinstance(sentence, str) or offset < 2:
        raise TokenizerError(
            f"[tokenizer_config.json] Pegasus numbers its pieces from offset + 2 with mask_token_sent among the first, "
            f"got offset {offset} and mask_token_sent {sentence!r:.40}, add the folder's tokenizer.json"
        )
    before = ("<pad>", "</s>", sentence, mask, *(f"<unk_{i}>" for i in range(2, offset)))
    return Family(before=before, skipped=2, trimmed=False, around=around)


def _multilingual(settings: Settings) -> Family:
    after = (*codes_of(settings), settings.named.get("mask_token", "<mask>"))
    # The special tokens around a text name its language: `Languages` puts them.
    return Family(before=FAIRSEQ, skipped=3, after=after, trimmed=settings.class_name == "MBartTokenizer")


def _xlm_roberta(settings: Settings) -> Family:
    return Family(before=FAIRSEQ, skipped=3, after=(settings.named.get("mask_token", "<mask>"),), around=ROBERTA_AROUND)


def _camembert(settings: Settings) -> Family:
    before = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
    return Family(before=before, skipped=1, after=(settings.named.get("mask_token", "<mask>"),), around=ROBERTA_AROUND)


FAMILIES: dict[str, Callable[[Settings], Family]] = {
    "LlamaTokenizer": _llama,
    "GemmaTokenizer": _llama,
    "T5Tokenizer": _t5,
    "AlbertTokenizer": _albert,
    "DebertaV2Tokenizer": _deberta,
    "PegasusTokenizer": _pegasus,
    "XLMRobertaTokenizer": _xlm_roberta,
    "CamembertTokenizer": _camembert,
    "MBartTokenizer": _multilingual,
    "MBart50Tokenizer": _multilingual,
    "NllbTokenizer": _multilingual,
}


def family_of(settings: Settings, file: str) -> Family:
    """The family of the settings' class; tokenizer.model of an unknown class is Llama's. Raises TokenizerError."""
    make = FAMILIES.get(settings.class_name)
    if make is None and file == "tokenizer.model":
        make = _llama
    if make is None:
        raise TokenizerError(
            f"[{file}] SentencePiece models are read for {', '.join(FAMILIES)}, this one is of "
            f"{settings.class_name or 'no class'}, add the folder's tokenizer.json"
        )
    return make(settings)


def prepare_albert(text: str, lower: bool, keep_accents: bool) -> Prepared:
    """Spaces made single, `` and '' made ", accents removed, lower case.

    Source: transformers 4, tokenization_albert.py.
    """
    out: Prepared = []
    at = 0
    for word in text.split():
        begin = text.index(word, at)
        if out:
            out.append((" ", at, begin))
        at = begin + len(word)
        i = begin
        while i < at:
            width = 2 if text[i : i + 2] in ("``", "''") and i + 2 <= at else 1
            out.append(('"' if width == 2 else text[i], i, i + width))
            i += width
    if not keep_accents:
        out = [
            (part, begin, end)
            for char, begin, end in out
            for part in unicodedata.normalize("NFKD", char)
            if not unicodedata.combining(part)
        ]
    return _lowered(out) if lower else out


def lower_case(text: str) -> Prepared:
    return _lowered([(char, i, i + 1) for i, char in enumerate(text)])


def _lowered(chars: Prepared) -> Prepared:
    whole = "".join(char for char, _, _ in chars).lower()  # as a whole, because a sigma depends on what follows it
    at = 0
    out: Prepared = []
    for char, begin, end in chars:
        width = len(char.lower())
        out += [(part, begin, end) for part in whole[at : at + width]]
        at += width
    return out


def split_punctuation(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of stretches without punctuation, and of each punctuation mark."""
    begin = 0
    for i, char in enumerate(text):
        if _is_punctuation(char):
            if begin < i:
                yield begin, i
            yield i, i + 1
            begin = i + 1
    if begin < len(text):
        yield begin, len(text)


def _is_punctuation(char: str) -> bool:
    """As BERT has it: all ASCII that is no letter, digit or space, and Unicode's punctuation."""
    ascii_mark = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return ascii_mark or unicodedata.category(char).startswith("P")
