"""Texts as vectors: the embeddings pipeline, and sentence-similarity, which compares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError
from . import task_options
from .feature_extraction import warn_of_cut
from .task_options import Option, Settings, Table
from .task_pipeline import TaskPipeline

Floats = NDArray[np.float32]

_EMBEDDING: Table = {
    **task_options.COMMON,
    "truncation": task_options.CUTTING["truncation"],
    "normalize": task_options.flag(True),
    "pooling": Option(None, lambda value: isinstance(value, (str, list, tuple)), "be a str or a list of str"),
    "prompt": task_options.text(),
    "prompt_name": task_options.text(),
}


@dataclass(frozen=True)
class Comparison:
    """One sentence and those it is compared with."""

    source: str
    sentences: list[str]


class EmbeddingsPipeline(TaskPipeline[str]):
    """`embedder(["one text", "another"]) -> float32 [2, D]`: what `EncoderModel.embed` gives."""

    task = "embeddings"
    OPTIONS = _EMBEDDING
    AT_ONCE = 32

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Vectors of one text (float32 [D]), of a list ([n, D]), or of a generator (an iterator of [D]).

        normalize    True (default): vectors of length 1, whose dot products are cosines
        pooling      "mean", "cls", "max", ... (see `EncoderModel.embed`); default: what the folder says, else the mean
        prompt, prompt_name   put before every text
        truncation   True: cut what is too long, and warn of it. Otherwise such a text raises ContextLengthError
        batch_size   texts run together; results don't depend on it
        """
        result = self._call(inputs, options, isinstance(inputs, str))
        if not isinstance(result, list):
            return result
        return np.stack(result) if result else self.model.embed([])

    def _read(self, given: Any) -> str:
        return self._text(given)

    def _run(self, items: Sequence[str], settings: Settings, first: int | None) -> Iterator[Floats]:
        yield from embedded(self.task, self.model, items, settings)


class SentenceSimilarityPipeline(TaskPipeline[Comparison]):
    """`similarity({"source_sentence": "A cat", "sentences": ["A dog", "Tax law"]}) -> [0.7, 0.1]`"""

    task = "sentence-similarity"
    OPTIONS = _EMBEDDING
    TAKES = 'a dict {"source_sentence": ..., "sentences": [...]}, or a list or generator of them'

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """How alike a sentence is to others: cosines, in their order; a list of such lists for a list of inputs.

        Also as `similarity(source_sentence=..., sentences=[...])`. Options as of the embeddings task; with
        normalize=False they are dot products.
        """
        named = {name: options.pop(name) for name in ("source_sentence", "sentences") if name in options}
        if named and inputs is not None:
            raise PromptError(f"[{self.task}] takes {self.TAKES}, or the same as keywords; got both")
        given = named or inputs
        return self._call(given, options, isinstance(given, Mapping))

    def _read(self, given: Any) -> Comparison:
        if isinstance(given, Mapping) and set(given) == {"source_sentence", "sentences"}:
            source, others = given["source_sentence"], given["sentences"]
            several = isinstance(others, (list, tuple)) and all(isinstance(each, str) for each in others)
            if isinstance(source, str) and several:
                return Comparison(source, list(others))
        raise PromptError(f"[{self.task}] takes {self.TAKES}, got {given!r:.80}; pass one of these")

    def _run(self, items: Sequence[Comparison], settings: Settings, first: int | None) -> Iterator[list[float]]:
        texts = [text for item in items for text in (item.source, *item.sentences)]
        vectors = iter(embedded(self.task, self.model, texts, settings).astype(np.float64))
        for item in items:
            source = next(vectors)
            yield [float(source @ next(vectors)) for _ in item.sentences]


def embedded(task: str, model: Any, texts: Sequence[str], settings: Settings) -> Floats:
    """float32 [n, D]. Warns of texts that are cut."""
    cuts = settings["truncation"] not in (False, "do_not_truncate")
    if cuts:
        most = min(model.max_length, model.sentences.max_length or model.max_length)
        for text in texts:
            length = len(model.tokenizer.encode(text))
            warn_of_cut(task, text, max(0, length - most), min(length, most))
    given = {name: settings[name] for name in ("normalize", "pooling", "prompt", "prompt_name")}
    vectors: Floats = model.embed(list(texts), truncation=cuts, **given)
    return vectors
