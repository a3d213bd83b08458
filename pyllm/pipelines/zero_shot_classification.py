"""The zero-shot-classification pipeline: any labels, by asking a model of inference whether a text entails each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidOptionError, PromptError, UnsupportedModelError
from . import labels, task_options
from .classifier_pipeline import ClassifierPipeline
from .encoder_pipeline import Floats, Prepared
from .task_options import Settings, Table
from .task_pipeline import Record, with_cut


class ZeroShotClassificationPipeline(ClassifierPipeline[str]):
    """`classifier("Ships sail", ["sea", "sky"]) -> {"sequence": ..., "labels": ["sea", "sky"], "scores": ...}`"""

    task = "zero-shot-classification"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        **task_options.CUTTING,
        "candidate_labels": task_options.strings(),
        "hypothesis_template": task_options.text("This example is {}."),
        "multi_label": task_options.flag(),
        "multi_class": task_options.flag(None),
    }

    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Scores of labels for one text, or for each in a list or generator.

        candidate_labels      a list of str, or one str with commas between the labels
        hypothesis_template   the sentence that a label is put into at {}
        multi_label           True: labels are independent, each scored by entailment against contradiction; False: the
                              scores of all add up to 1. multi_class is its old name
        truncation            True: cut the text (never the hypothesis) so that the model can read it, and say so as
                              record["truncated_tokens"]. Otherwise a text that is too long raises ContextLengthError
        batch_size            texts run together, each with all its labels; results don't depend on it

        Returns {"sequence", "labels", "scores"}, best label first; a list of these for a list.
        """
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return self._call(sequences, options, isinstance(sequences, str))

    def _settings(self, options: Any) -> Settings:
        settings = super()._settings(options)
        old = settings.pop("multi_class")
        settings["multi_label"] = settings["multi_label"] if old is None else old
        given, template = settings["candidate_labels"], settings["hypothesis_template"]
        names = [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given
        if not names:
            raise InvalidOptionError(f"[{self.task}] candidate_labels must name at least one label, got {given!r}")
        try:
            hypotheses = [template.format(name) for name in names]
        except (IndexError, KeyError, ValueError, AttributeError) as error:
            raise InvalidOptionError(
                f"[{self.task}] hypothesis_template must have {{}} for the label, got {template!r:.80} ({error})"
            ) from None
        if hypotheses[0] == template:
            raise InvalidOptionError(
                f"[{self.task}] hypothesis_template must have {{}} for the label, got {template!r:.80} without it"
            )
        return settings | {"candidate_labels": list(names), "hypotheses": hypotheses}

    def _read(self, given: Any) -> str:
        text = self._text(given)
        if not text:
            raise PromptError(f"[{self.task}] a text must not be empty, got ''; leave it out")
        return text

    def _prepare(self, item: str, settings: Settings) -> Prepared[str]:
        fitted = [self._fit(item, hypothesis, settings, "only_first") for hypothesis in settings["hypotheses"]]
        return Prepared(item, [each.encoding for each in fitted], max(each.cut for each in fitted))

    def _finish(self, prepared: Prepared[str], outputs: Sequence[Floats], settings: Settings) -> Record:
        logits = np.stack(outputs)
        names: list[str] = settings["candidate_labels"]
        entailment = self._entailment(logits.shape[1])
        if settings["multi_label"] or len(names) == 1:
            contradiction = -1 if entailment == 0 else 0  # transformers' rule
            scores = labels.softmax(logits[:, [contradiction, entailment]])[:, 1]
        else:
            scores = labels.softmax(logits[:, entailment])
        order = np.argsort(-scores, kind="stable").tolist()
        record = {
            "sequence": prepared.item,
            "labels": [names[index] for index in order],
            "scores": [float(scores[index]) for index in order],
        }
        return with_cut(record, prepared.cut)

    def _entailment(self, count: int) -> int:
        """The output that means entailment. Raises UnsupportedModelError for a model without one."""
        known = labels.label2id(self.model.config, count)
        for name, index in known.items():
            if name.lower().startswith("entail"):
                return index
        raise UnsupportedModelError(
            f"[{self.task}] the model must have a label that begins with 'entail', got {', '.join(known)}; load a "
            "model of natural language inference, or name the label in config.json's label2id"
        )
