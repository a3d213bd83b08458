"""Text that arrives piece by piece: the iterator behind `LanguageModel.stream`, and feeding transformers' streamers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..decode.policy import Policy
from ..errors import InvalidOptionError
from .engine import Engine
from .results import Generation
from .sources import Source


class Streamer(Protocol):
    """transformers' streamer interface (TextStreamer, TextIteratorStreamer, BaseStreamer)."""

    def put(self, value: NDArray[np.int64]) -> None:
        """Token ids: first the prompt as [1, T], then each step's new token as [1]."""

    def end(self) -> None:
        """The text is complete."""


class TextStream(Iterator[str]):
    """Pieces of one text as soon as they are certain; joined they are the whole. `close` (or dropping it) stops the
    work; `result` is what was generated, once the pieces have run out."""

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        self._pieces = pieces
        self._result: Generation | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            if stop.value is not None:
                self._result = stop.value
            raise StopIteration from None

    @property
    def result(self) -> Generation:
        """The finished generation. Raises InvalidOptionError before the last piece has been read."""
        if self._result is None:
            raise InvalidOptionError("[stream] result is known after the last piece; iterate to the end first")
        return self._result

    def close(self) -> None:
        """Stops generating and frees the cache blocks."""
        self._pieces.close()


def new_tokens(engine: Engine, policy: Policy, source: Source | None = None) -> Iterator[list[int]]:
    """Drives `policy` alone and yields the tokens of its one sequence, each once, as they are chosen."""
    engine.add(policy, source)
    sent = 0
    while engine.busy:
        engine.step()
        tokens = policy.sequence_tokens(0)
        if len(tokens) > sent:
            yield tokens[sent:]
            sent = len(tokens)


def feed(streamer: Streamer, engine: Engine, policy: Policy, source: Source | None = None) -> None:
    """Runs `policy` to its end and hands the streamer what transformers' generate would."""
    streamer.put(np.array([policy.prompt_ids], np.int64))
    for tokens in new_tokens(engine, policy, source):
        for token in tokens:
            streamer.put(np.array([token], np.int64))
    streamer.end()
