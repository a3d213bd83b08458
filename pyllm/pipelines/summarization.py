"""The summarization pipeline: `pipe("a long text") -> [{"summary_text": ...}]`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..decode.options import GenerationOptions
from .seq2seq_options import most_new_tokens
from .text2text import Text2TextPipeline


class SummarizationPipeline(Text2TextPipeline):
    """Writes summaries. See `Text2TextPipeline.__call__`."""

    task = "summarization"
    KEY = "summary"

    def _warn_of_lengths(self, lengths: Sequence[int], options: GenerationOptions) -> None:
        most, shortest = most_new_tokens(options), min(lengths)
        if "max_length" in options.given | set(self._parameters) and shortest < most:
            warnings.warn(
                f"summaries may have up to {most} tokens, a text has {shortest} only; lower max_length for a shorter "
                "summary",
                UserWarning,
                stacklevel=2,
            )
