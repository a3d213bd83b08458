"""Fits the input of an encoder-decoder into the model: its task's prefix, its languages, cutting it when asked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..engine.seq2seq_model import Seq2SeqModel
from ..errors import ContextLengthError


class Languages(NamedTuple):
    """Codes, None where none is said, and the token that the target begins with."""

    source: str | None = None
    target: str | None = None
    forced: int | None = None

    @property
    def codes(self) -> dict[str, Any]:
        """As keywords for the tokenizer."""
        return {"src_lang": self.source, "tgt_lang": self.target}


@dataclass(frozen=True)
class PreparedSource:
    """What the encoder reads of a text, which a task's prefix is part of up to `begin`. cut: tokens of it that are left
    out, at its beginning if `left`, else at its end."""

    ids: list[int]
    text: str
    languages: Languages
    begin: int = 0
    cut: int = 0
    left: bool = False


def prepare(model: Seq2SeqModel, task: str, prefix: str, text: str, languages: Languages, cuts: bool) -> PreparedSource:
    """Tokens of prefix + text. Raises ContextLengthError with both numbers for more than the model takes, unless it
    `cuts` them to that, and to what the tokenizer's files say where this is less."""
    tokenizer = model.tokenizer
    whole = prefix + text
    ids = tokenizer.encode(whole, **languages.codes)
    limit = model.max_source_positions
    if not cuts:
        if len(ids) > limit:
            raise ContextLengthError(
                f"[{task}] a text must fit the model, got {len(ids)} tokens for a length of {limit}; shorten it, or "
                "pass truncation=True to have it cut"
            )
        return PreparedSource(ids, whole, languages, len(prefix))
    limit = min(limit, tokenizer.model_max_length or limit)
    if len(ids) <= limit:
        return PreparedSource(ids, whole, languages, len(prefix))
    bare = tokenizer.encode(whole, add_special_tokens=False, **languages.codes)
    keep = limit - (len(ids) - len(bare))
    if keep < 1:
        raise ContextLengthError(
            f"[{task}] truncation must leave some of a text, got {len(ids) - len(bare)} special tokens for a length of "
            f"{limit}; correct model_max_length in tokenizer_config.json"
        )
    left = tokenizer.truncation_side == "left"
    kept = bare[-keep:] if left else bare[:keep]
    built = tokenizer.build_inputs(kept, **languages.codes).ids
    return PreparedSource(built, whole, languages, len(prefix), len(bare) - keep, left)
