"""The feature-extraction pipeline: the model's last hidden state of every token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from . import task_options
from .encoder_pipeline import EncoderPipeline, Floats, Prepared
from .task_options import Settings, Table


class FeatureExtractionPipeline(EncoderPipeline[str]):
    """`extractor("Hello") -> [[[0.1, ...], ...]]`: a list [1][T][D], special tokens included. Decoders do as well."""

    task = "feature-extraction"
    KINDS = ("encoder", "decoder")
    OUTPUT = "hidden"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        **task_options.CUTTING,
        "tokenize_kwargs": task_options.CUTTING["tokenizer_kwargs"],
        "return_tensors": task_options.Option(
            False, lambda value: isinstance(value, (bool, str)), "be True, False or a str"
        ),
    }

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Last hidden states of one text, or of each in a list or generator.

        return_tensors   True: float32 NumPy arrays [1, T, D] instead of lists
        truncation       True: cut what the model can't read, and warn of it; max_length: to this many tokens. Otherwise
                         a text that is too long raises ContextLengthError
        batch_size       texts run together; results don't depend on it
        """
        return self._call(inputs, options, isinstance(inputs, str))

    def _read(self, given: Any) -> str:
        return self._text(given)

    def _prepare(self, item: str, settings: Settings) -> Prepared[str]:
        fitted = self._fit(item, None, settings)
        warn_of_cut(self.task, item, fitted.cut, len(fitted.encoding.ids))
        return Prepared(item, [fitted.encoding], fitted.cut)

    def _forward(self, encodings: Sequence[Any]) -> list[Floats]:
        if self.model.network.kind == "encoder":
            return super()._forward(encodings)
        return [self.model.hidden_states(encoding.ids, layers=[-1])[-1] for encoding in encodings]

    def _finish(self, prepared: Prepared[str], outputs: Sequence[Floats], settings: Settings) -> Any:
        hidden = np.asarray(outputs[0], np.float32)[None]
        return hidden if settings["return_tensors"] else hidden.tolist()


def warn_of_cut(task: str, text: str, cut: int, kept: int) -> None:
    """For results that have no place to say it."""
    if cut:
        message = f"[{task}] {cut} of {cut + kept} tokens of {text!r:.40} were cut (truncation)"
        warnings.warn(message, UserWarning, stacklevel=2)
