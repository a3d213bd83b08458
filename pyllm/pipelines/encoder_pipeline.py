"""`EncoderPipeline`: tasks that read one or several encodings of each input off an encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidOptionError
from ..tokenization.encoding import Encoding
from . import inputs as shapes
from . import task_options, windows
from .task_options import Settings
from .task_pipeline import TaskPipeline

Item = TypeVar("Item")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared(Generic[Item]):
    """One input as the model reads it. cut: tokens of it that the model does not read (truncation=True)."""

    item: Item
    encodings: list[Encoding]
    cut: int = 0


class EncoderPipeline(TaskPipeline[Item]):
    """`_prepare` tokenizes an input, `_finish` makes a result of the model's output. OUTPUT: "head" or "hidden"."""

    OUTPUT: ClassVar[str] = "head"

    @abstractmethod
    def _prepare(self, item: Item, settings: Settings) -> Prepared[Item]:
        """Raises ContextLengthError, PromptError."""

    @abstractmethod
    def _finish(self, prepared: Prepared[Item], outputs: Sequence[Floats], settings: Settings) -> Any:
        """The result of one input. outputs: one array for each encoding."""

    def _run(self, items: Sequence[Item], settings: Settings, first: int | None) -> Iterator[Any]:
        if first is None:
            prepared = [self._prepare(item, settings) for item in items]
        else:
            prepared = shapes.read_all(items, lambda item: self._prepare(item, settings), first)
        outputs = iter(self._forward([encoding for each in prepared for encoding in each.encodings]))
        for each in prepared:
            yield self._finish(each, [next(outputs) for _ in each.encodings], settings)

    def _forward(self, encodings: Sequence[Encoding]) -> list[Floats]:
        ids = [encoding.ids for encoding in encodings]
        types = [encoding.type_ids for encoding in encodings]
        outputs: list[Floats] = self.model.forward(ids, types, output=self.OUTPUT, rows=self._rows(encodings))
        return outputs

    def _rows(self, encodings: Sequence[Encoding]) -> list[list[int]] | None:
        """The tokens of each encoding whose outputs are wanted; None: all."""
        return None

    def _limit(self, settings: Settings) -> int:
        """Most tokens of one encoding. Raises InvalidOptionError for a max_length beyond the model's."""
        most: int = self.model.max_positions
        asked: int | None = settings.get("max_length")
        if asked is not None and asked > most:
            raise InvalidOptionError(
                f"[{self.task}] max_length must be at most the model's length, got {asked} for {most}; lower it"
            )
        return asked or most

    def _fit(self, text: str, pair: str | None, settings: Settings, default: str = "longest_first") -> windows.Fitted:
        """default: what truncation=True stands for."""
        chosen = task_options.strategy(settings, default)
        return windows.fit(self.tokenizer, self.task, text, pair, self._limit(settings), chosen)
