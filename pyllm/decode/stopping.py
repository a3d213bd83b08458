"""When a sequence ends: end tokens, length, stop strings, a caller's criteria, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidOptionError
from .policy import Decode, Request
from .track import Stop

_END, _LENGTH, _TIME, _CRITERIA = Stop("stop"), Stop("length"), Stop("time"), Stop("criteria")


class Stopping:
    """The stopping rules of one request. An end token counts before a stop string, that before a caller's criteria;
    those end one sequence, while length and time end every sequence of the group."""

    def __init__(self, request: Request) -> None:
        options = request.options
        self.ends = frozenset(options.eos_token_id)
        self._max_length = request.max_length
        self._deadline = None if options.max_time is None else request.started + options.max_time
        self._criteria = options.stopping_criteria
        self._strings = StopStrings(options.stop_strings, request.decode) if options.stop_strings else None
        self.reads_text = bool(self._criteria) or self._strings is not None
        self.by_tokens = not self.reads_text and self._deadline is None  # by nothing but end tokens and length

    def at_end_token(self, token: int) -> Stop | None:
        """The stop if `token` is an end token."""
        return _END if token in self.ends else None

    def for_all(self, length: int) -> Stop | None:
        """The stop of the whole group, whose sequences have `length` tokens now."""
        if length >= self._max_length:
            return _LENGTH
        if self._deadline is not None and time.monotonic() > self._deadline:
            return _TIME
        return None

    def in_text(self, histories: Sequence[list[int]], scores: Any) -> list[Stop | None]:
        """Stop strings and criteria for whole sequences of equal length (prompt included). `scores` is handed to the
        criteria: the tuple of scores so far when they are kept, else None."""
        stops: list[Stop | None] = [None] * len(histories)
        for function in self._criteria:
            answer = np.asarray(function(np.array(histories, np.int64), scores))
            if answer.size not in (1, len(histories)):
                raise InvalidOptionError(
                    f"[generate] a stopping_criteria must return one bool, or one per sequence ({len(histories)}), "
                    f"got shape {answer.shape}"
                )
            hits = np.broadcast_to(answer.reshape(-1), len(histories))
            stops = [_CRITERIA if hit else stop for hit, stop in zip(hits, stops, strict=True)]
        if self._strings is not None:
            found = [self._strings.met(history) for history in histories]
            stops = [Stop("stop_string", f) if f is not None else s for f, s in zip(found, stops, strict=True)]
        return stops


class StopStrings:
    """Tells when the last token of a sequence completes a stop string (transformers' StopStringCriteria): the string
    must end within that token's text, and may begin anywhere before, in the prompt as well."""

    def __init__(self, strings: Sequence[str], decode: Decode | None) -> None:
        assert decode is not None  # make_policy has seen to it
        self._strings = strings
        self._decode = decode
        # A token adds a byte at least; one token more keeps the text's first space, which decoders drop at the start.
        self._window = max(len(string.encode()) for string in strings) + 1

    def met(self, history: list[int]) -> str | None:
        """The stop string that the last token completes; the earliest in the text if there are several."""
        tail = history[-self._window :]
        text, before = self._decode(tail), self._decode(tail[:-1])
        known = _common_length(text, before)
        found = []
        for string in self._strings:
            at = text.find(string, max(0, known - len(string) + 1))
            if at >= 0:
                found.append((at, string))
        return min(found)[1] if found else None


def _common_length(a: str, b: str) -> int:
    """Length of the common beginning."""
    both = min(len(a), len(b))
    return next((i for i in range(both) if a[i] != b[i]), both)
