"""The translation pipelines: `pipe("How old are you?") -> [{"translation_text": ...}]`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from ..decode.options import GenerationOptions
from . import seq2seq_options
from .seq2seq_options import most_new_tokens
from .seq2seq_sources import Languages
from .task_options import Settings
from .text2text import Text2TextPipeline

TASK = re.compile(r"translation_(.+)_to_(.+)")


class TranslationPipeline(Text2TextPipeline):
    """Translates. See `Text2TextPipeline.__call__`. PAIR: the languages that the task's name says."""

    task = "translation"
    KEY = "translation"
    PAIR: ClassVar[tuple[str, str] | None] = None

    def __init__(self, model: Any, **defaults: Any) -> None:
        super().__init__(model, **defaults)
        if not self._parameters:
            self._read_other_pairs()

    def _read_other_pairs(self) -> None:
        """A model for several pairs of languages that is asked for none translates the first, as in transformers 4;
        one that is asked for another one than those is run without a prefix. Both are said."""
        every = self.model.config.get("task_specific_params") or {}
        pairs = [name for name in every if TASK.fullmatch(name)]
        if not pairs:
            return
        if self.PAIR is None:
            self._parameters = seq2seq_options.task_parameters(self.model.config, pairs[0])
            problem = f"task 'translation' does not say the languages, {pairs[0]!r} is taken"
        else:
            problem = f"config.json has no parameters for {self.task!r}, so texts get no prefix"
        warnings.warn(f"{problem}; this model's tasks are {', '.join(pairs)}", UserWarning, stacklevel=4)

    def _languages(self, settings: Settings) -> Languages:
        """The languages asked for, else those in the task's name where the model knows languages."""
        tokenizer = self.tokenizer
        asked = settings["src_lang"], settings["tgt_lang"]
        named = self.PAIR if asked == (None, None) else None
        if not tokenizer.languages:
            if asked != (None, None):
                warnings.warn("src_lang and tgt_lang have no effect: this model has no languages", stacklevel=2)
            return Languages()
        if self.model.network.family == "marian":  # is told the target alone, in the source text; its codes are others
            target = asked[1] or (named[1] if named and named[1] in tokenizer.languages else None)
            return Languages(None, target)
        source, target = named or asked
        config = self.model.generation_config
        needed = target is not None or config.get("forced_bos_token_id") is None
        return Languages(source, target, tokenizer.forced_bos_token_id(target) if needed else None)

    def _warn_of_lengths(self, lengths: Sequence[int], options: GenerationOptions) -> None:
        most, longest = most_new_tokens(options), max(lengths)
        if longest > 0.9 * most:
            warnings.warn(
                f"a text has {longest} tokens, its translation may have {most}; raise max_new_tokens lest it be cut",
                UserWarning,
                stacklevel=2,
            )


def translation_between(task: str) -> type[TranslationPipeline] | None:
    """The pipeline of a task "translation_xx_to_yy"; None for other names."""
    found = TASK.fullmatch(task)
    if found is None:
        return None
    return type("TranslationPipeline", (TranslationPipeline,), {"task": task, "PAIR": (found[1], found[2])})
