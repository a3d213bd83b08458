"""Fits tokenized texts into a model's length: cutting them, or dividing them into windows that overlap. No models."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ContextLengthError, InvalidOptionError
from ..tokenization import Tokenizer
from ..tokenization.encoding import Encoding

# transformers' names of the ways to cut, and what truncation=True and False stand for.
STRATEGIES = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass(frozen=True)
class Span:
    """The tokens of one text, without special tokens: one entry a token in each list."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> Span:
        """The tokens begin..end-1."""
        return Span(self.ids[begin:end], self.offsets[begin:end], self.word_ids[begin:end])


@dataclass(frozen=True)
class Fitted:
    """What the model reads, and how many tokens of the texts it does not."""

    encoding: Encoding
    cut: int = 0


def spans_of(encoding: Encoding) -> tuple[Span, Span | None]:
    """The text's and the pair's own tokens; None for an encoding of one text."""
    first = [at for at, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
    second = [at for at, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    return _pick(encoding, first), _pick(encoding, second) if second else None


def assemble(tokenizer: Tokenizer, first: Span, second: Span | None = None) -> Encoding:
    """Special tokens around parts of texts, whose places in those texts are kept."""
    bare = tokenizer.build_inputs(first.ids, None if second is None else second.ids)
    own = {0: iter(zip(first.offsets, first.word_ids, strict=True))}
    if second is not None:
        own[1] = iter(zip(second.offsets, second.word_ids, strict=True))
    placed = [((0, 0), None) if sequence is None else next(own[sequence]) for sequence in bare.sequence_ids]
    offsets, word_ids = [offset for offset, _ in placed], [word for _, word in placed]
    return Encoding(bare.ids, bare.type_ids, offsets, bare.sequence_ids, word_ids, bare.special_mask)


def windows(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """begin and end of the parts of `length` tokens: `size` long, each sharing `stride` tokens with the one before, up
    to the first that reaches the end (as the `tokenizers` library divides texts that overflow)."""
    found = [(0, min(size, length))]
    while found[-1][1] < length:
        begin = found[-1][0] + size - stride
        found.append((begin, min(begin + size, length)))
    return found


def shortened(first: int, second: int, room: int, strategy: str) -> tuple[int, int]:
    """How many tokens of a text and its pair stay when both together may have `room`, as the `tokenizers` library cuts:
    longest_first takes from the longer one, then from both alike; only_first and only_second from that one alone."""
    excess = first + second - room
    if excess <= 0:
        return first, second
    if strategy == "only_first":
        return first - excess, second
    if strategy == "only_second":
        return first, second - excess
    short = min(first, second)
    if short > room:
        long = short
    else:
        long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def fit(
    tokenizer: Tokenizer, where: str, text: str, pair: str | None, limit: int, strategy: str = "do_not_truncate"
) -> Fitted:
    """A text, or a text and its pair, in at most `limit` tokens.

    Raises ContextLengthError with both numbers where it is longer and may not be cut, or not cut enough.
    """
    whole = tokenizer.encode_plus(text, pair)
    count = len(whole.ids)
    if count <= limit:
        return Fitted(whole)
    first, second = spans_of(whole)
    if pair is not None and second is None:
        second = Span([], [], [])
    if strategy == "do_not_truncate":
        raise ContextLengthError(
            f"[{where}] a text must fit the model, got {count} tokens for a length of {limit}; shorten it, or pass "
            "truncation=True to have it cut"
        )
    lengths = len(first), 0 if second is None else len(second)
    keep = shortened(*lengths, limit - tokenizer.num_special_tokens(pair is not None), strategy)
    if min(keep) < 0 or (strategy == "only_second" and second is None):
        raise ContextLengthError(
            f"[{where}] truncation={strategy!r} must leave at most {limit} tokens, got {lengths[0]} of the text and "
            f"{lengths[1]} of its pair; shorten the other one or use truncation='longest_first'"
        )
    side = tokenizer.truncation_side
    first = _kept(first, keep[0], side)
    second = None if second is None else _kept(second, keep[1], side)
    return Fitted(assemble(tokenizer, first, second), sum(lengths) - sum(keep))


def divide(tokenizer: Tokenizer, where: str, text: str, limit: int, stride: int) -> list[Encoding]:
    """A text as one encoding, or as several of at most `limit` tokens that share `stride` tokens with their neighbour.

    Raises InvalidOptionError when the stride leaves no room to go on.
    """
    whole = tokenizer.encode_plus(text)
    if len(whole.ids) <= limit:
        return [whole]
    span, _ = spans_of(whole)
    size = limit - tokenizer.num_special_tokens()
    check_stride(where, "stride", stride, size)
    return [assemble(tokenizer, span.part(*part)) for part in windows(len(span), size, stride)]


def check_stride(where: str, name: str, stride: int, size: int) -> None:
    """Raises InvalidOptionError unless windows of `size` tokens move on."""
    if stride >= size:
        raise InvalidOptionError(
            f"[{where}] {name} must be less than the tokens a window has room for, got {stride} for {size}; lower it"
        )


def _kept(span: Span, count: int, side: str) -> Span:
    return span.part(len(span) - count, len(span)) if side == "left" else span.part(0, count)


def _pick(encoding: Encoding, places: list[int]) -> Span:
    return Span(
        [encoding.ids[at] for at in places],
        [encoding.offsets[at] for at in places],
        [encoding.word_ids[at] for at in places],
    )
