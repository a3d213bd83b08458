"""`TaskPipeline`: what tasks with a table of options have in common: checks, lists and streams of inputs, batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from ..errors import PromptError
from ..tokenization import Tokenizer
from . import inputs as shapes
from . import task_options
from .kinds import require
from .task_options import Settings, Table

Item = TypeVar("Item")
Record = dict[str, Any]


class TaskPipeline(ABC, Generic[Item]):
    """A task on a loaded model: `_read` checks one input, `_run` answers some together.

    KINDS, HEAD: what the model must be (HEAD None: any head or none). OPTIONS: every option with its check. AT_ONCE:
    inputs of a list that run together when the caller doesn't say. TAKES: what inputs are, in words.
    """

    task: ClassVar[str]
    KINDS: ClassVar[tuple[str, ...]] = ("encoder",)
    HEAD: ClassVar[str | None] = None
    OPTIONS: ClassVar[Table]
    AT_ONCE: ClassVar[int] = 16
    TAKES: ClassVar[str] = "a str, or a list or generator of them"

    def __init__(self, model: Any, **defaults: Any) -> None:
        """Raises InvalidOptionError, UnknownOptionError, and UnsupportedModelError for a model of another kind."""
        self.check_options(defaults)
        require(self.task, model, self.KINDS, self.HEAD)
        self.model = model
        self._defaults = defaults

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        tokenizer: Tokenizer = self.model.tokenizer
        return tokenizer

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """Every option that calls take."""
        return frozenset(cls.OPTIONS)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError or UnknownOptionError for options no call could take."""
        task_options.read(cls.task, cls.OPTIONS, options)

    @abstractmethod
    def _read(self, given: Any) -> Item:
        """One input. Raises PromptError."""

    @abstractmethod
    def _run(self, items: Sequence[Item], settings: Settings, first: int | None) -> Iterator[Any]:
        """The results of some inputs, which are counted from `first` in error messages; None: there is one only."""

    def _call(self, given: Any, options: Mapping[str, Any], single: bool) -> Any:
        """Result of one input (single), of a list (a list), or of a stream (an iterator that reads it as it goes)."""
        settings = self._settings(options)
        if single:
            return next(self._run([self._read(given)], settings, None))
        if shapes.is_stream(given):
            return self._results(map(self._read, given), settings, settings["batch_size"] or 1)
        if not isinstance(given, (list, tuple)):
            raise self._refused(given)
        items = shapes.read_all(given, self._read)
        return list(self._results(items, settings, settings["batch_size"] or self.AT_ONCE))

    def _results(self, items: Iterable[Item], settings: Settings, size: int) -> Iterator[Any]:
        done = 0
        for batch in shapes.batches(items, size):
            yield from self._run(batch, settings, done)
            done += len(batch)

    def _settings(self, options: Mapping[str, Any]) -> Settings:
        """Every option of this call with its value. Raises InvalidOptionError, UnknownOptionError."""
        return task_options.read(self.task, self.OPTIONS, {**self._defaults, **options})

    def _text(self, given: Any) -> str:
        if not isinstance(given, str):
            raise self._refused(given)
        return given

    def _refused(self, given: Any) -> PromptError:
        return PromptError(f"[{self.task}] takes {self.TAKES}, got {type(given).__name__}; pass one of these")


def with_cut(record: Record, cut: int) -> Record:
    """The record, which says how many tokens were cut if any were."""
    return {**record, "truncated_tokens": cut} if cut else record
