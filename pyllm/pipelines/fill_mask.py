"""The fill-mask pipeline: the likeliest tokens in the place of a mask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidOptionError, PromptError, UnsupportedModelError
from ..tokenization.encoding import Encoding
from . import labels, task_options
from .encoder_pipeline import EncoderPipeline, Floats, Prepared
from .task_options import Settings, Table
from .task_pipeline import Record, with_cut


class FillMaskPipeline(EncoderPipeline[str]):
    """`unmasker("The [MASK] of France.") -> [{"score": 0.9, "token": 3007, "token_str": "capital", ...}, ...]`"""

    task = "fill-mask"
    HEAD = "masked-lm"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        **task_options.CUTTING,
        "top_k": task_options.count(5),
        "targets": task_options.strings(),
    }

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Fills the masks of one text, or of each in a list or generator.

        top_k        tokens for each mask
        targets      a str or list: only these tokens; of one that is no token, its first token, with a warning
        truncation   True: cut what the model can't read, and say so as record["truncated_tokens"]; max_length: to this
                     many tokens. Otherwise a text that is too long raises ContextLengthError
        batch_size   texts run together; results don't depend on it

        Returns a list of {"score", "token", "token_str", "sequence"}, best first; for a text with several masks a list
        of such lists, whose probabilities are each mask's own. A list with one text gives that text's result itself.
        """
        result = self._call(inputs, options, isinstance(inputs, str))
        return result[0] if isinstance(inputs, list) and len(inputs) == 1 else result

    def _settings(self, options: Any) -> Settings:
        settings = super()._settings(options)
        if self.tokenizer.mask_token_id is None:
            raise UnsupportedModelError(
                "[fill-mask] the tokenizer must have a mask token, this one has none; load the files of a masked model"
            )
        targets = settings["targets"]
        if targets is not None:
            settings["targets"] = self._target_ids([targets] if isinstance(targets, str) else targets)
        return settings

    def _read(self, given: Any) -> str:
        return self._text(given)

    def _prepare(self, item: str, settings: Settings) -> Prepared[str]:
        fitted = self._fit(item, None, settings)
        if self.tokenizer.mask_token_id not in fitted.encoding.ids:
            raise PromptError(
                f"[fill-mask] a text must have a mask, got none in {item!r:.60}; put {self.tokenizer.mask_token} where "
                "a token is wanted"
            )
        return Prepared(item, [fitted.encoding], fitted.cut)

    def _rows(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        mask = self.tokenizer.mask_token_id
        return [[at for at, id in enumerate(encoding.ids) if id == mask] for encoding in encodings]

    def _finish(self, prepared: Prepared[str], outputs: Sequence[Floats], settings: Settings) -> Any:
        (places,) = self._rows(prepared.encodings)
        ids, single = prepared.encodings[0].ids, len(places) == 1
        found = [
            self._filled(ids, at, logits, single, prepared.cut, settings)
            for at, logits in zip(places, outputs[0], strict=True)
        ]
        return found[0] if single else found

    def _filled(
        self, ids: list[int], place: int, logits: Floats, skip: bool, cut: int, settings: Settings
    ) -> list[Record]:
        """The records of one mask. skip: leave special tokens out of the sequence (other masks are some)."""
        probabilities = labels.softmax(logits)
        allowed = settings["targets"]
        candidates = np.arange(len(logits)) if allowed is None else np.array(allowed)
        best = candidates[np.argsort(-probabilities[candidates], kind="stable")[: settings["top_k"]]]
        records = []
        for token in best.tolist():
            whole = [*ids[:place], token, *ids[place + 1 :]]
            sequence = self.tokenizer.decode([id for id in whole if id != self.tokenizer.pad_token_id], skip)
            record = {
                "score": float(probabilities[token]),
                "token": token,
                "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
                "sequence": sequence,
            }
            records.append(with_cut(record, cut))
        return records

    def _target_ids(self, targets: Sequence[str]) -> list[int]:
        """Raises InvalidOptionError for targets that have no tokens; warns of those that are more than one."""
        found: dict[int, None] = {}
        empty: list[str] = []
        for target in targets:
            id = self.tokenizer.token_to_id(target)
            if id is None:
                ids = self.tokenizer.encode(target, add_special_tokens=False)
                if not ids:
                    empty.append(target)
                    continue
                id = ids[0]
                token = self.tokenizer.id_to_token(id)
                message = f"target {target!r} is no token of the vocabulary, its first token {token!r} is used"
                warnings.warn(message, UserWarning, stacklevel=4)
            found[id] = None
        if empty:
            raise InvalidOptionError(f"[fill-mask] targets must have tokens, got none for {empty}; leave these out")
        return list(found)
