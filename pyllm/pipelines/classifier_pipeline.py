"""`ClassifierPipeline`: tasks on logits of whole texts, of encoders or of encoder-decoders such as BART."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ..errors import NumericError, PromptError
from ..tokenization.encoding import Encoding
from .encoder_pipeline import EncoderPipeline, Floats
from .task_options import Settings

Item = TypeVar("Item")


class ClassifierPipeline(EncoderPipeline[Item]):
    """`_finish` gets float32 [labels] for each encoding."""

    KINDS = ("encoder", "encoder-decoder")
    HEAD = "sequence-classification"

    def _forward(self, encodings: Sequence[Encoding]) -> list[Floats]:
        if self.model.network.kind == "encoder":
            return super()._forward(encodings)
        return [self._decoded(encoding.ids) for encoding in encodings]

    def _decoded(self, ids: list[int]) -> Floats:
        """An encoder-decoder writes the text again, and its head reads the row of the last end token (Lewis et al.
        2019, section 3.1)."""
        if ids[-1] != self.tokenizer.eos_token_id:
            raise PromptError(
                f"[{self.task}] a text must end with the end token for an encoder-decoder, got {ids[-1]}; use the "
                "tokenizer of these weights"
            )
        start = self.model.options({}).decoder_start_token_id
        start = self.model.config.get("decoder_start_token_id", ids[-1]) if start is None else start
        rows: Sequence[Floats] = self.model.logits([start, *ids[:-1]], source=ids)
        if not np.isfinite(rows[-1]).all():
            raise NumericError(
                f"[{self.task}] logits must be finite, got NaN or infinity; the weights are damaged, or bfloat16 "
                "overflows: load with dtype='float32'"
            )
        return rows[-1]

    def _limit(self, settings: Settings) -> int:
        most = super()._limit(settings)
        return min(most, self.model.max_source_positions) if self.model.network.kind != "encoder" else most
