"""The text-classification pipeline (also sentiment-analysis): labels of texts, or of pairs of texts, with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import PromptError
from . import labels, task_options
from .classifier_pipeline import ClassifierPipeline
from .encoder_pipeline import Floats, Prepared
from .task_options import Option, Settings, Table
from .task_pipeline import Record, with_cut

TextAndPair = tuple[str, str | None]


class TextClassificationPipeline(ClassifierPipeline[TextAndPair]):
    """`classifier("I like it") -> [{"label": "POSITIVE", "score": 0.99}]`"""

    task = "text-classification"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        **task_options.CUTTING,
        "top_k": Option("", lambda value: type(value) is int and value >= 1, "be an integer >= 1 or None", True),
        "return_all_scores": task_options.flag(),
        "function_to_apply": task_options.choice("default", labels.FUNCTIONS),
    }
    TAKES = 'a str, a dict {"text": ..., "text_pair": ...}, or a list or generator of these'

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Labels of one text (a str), of a pair ({"text": ..., "text_pair": ...}), or of each in a list or generator.

        top_k               this many labels, best first; None: all
        function_to_apply   "sigmoid", "softmax", "none", or "default": by the number of labels and the config's
                            problem_type
        truncation          True: cut what the model can't read, and say so as record["truncated_tokens"]; max_length:
                            to this many tokens. Otherwise a text that is too long raises ContextLengthError
        batch_size          texts run together; results don't depend on it

        Returns, as transformers 4 does: for a str a list with one {"label", "score"}, for a pair and each input of a
        list that dict itself; with top_k a list of dicts for each input, which stands in a further list where top_k was
        given at construction and the input is a str.
        """
        is_text = isinstance(inputs, str)
        single = is_text or isinstance(inputs, Mapping)
        result = self._call(inputs, options, single)
        return [result] if is_text and "top_k" not in options else result

    def _read(self, given: Any) -> TextAndPair:
        if isinstance(given, str):
            return given, None
        if _is_nested_pair(given):
            return given[0][0], given[0][1]
        if isinstance(given, Mapping) and "text" in given and not set(given) - {"text", "text_pair"}:
            text, pair = given["text"], given.get("text_pair")
            if isinstance(text, str) and (pair is None or isinstance(pair, str)):
                return text, pair
        raise PromptError(f"[{self.task}] takes {self.TAKES}, got {given!r:.80}; pass one of these")

    def _prepare(self, item: TextAndPair, settings: Settings) -> Prepared[TextAndPair]:
        text, pair = item
        fitted = self._fit(text, pair or None, settings)  # an empty pair is none, as in transformers
        return Prepared(item, [fitted.encoding], fitted.cut)

    def _finish(self, prepared: Prepared[TextAndPair], outputs: Sequence[Floats], settings: Settings) -> Any:
        logits = outputs[0]
        names = labels.id2label(self.model.config, len(logits))
        function = settings["function_to_apply"]
        if function == "default":
            function = labels.default_function(self.model.config, len(logits))
        scores = labels.apply(function, logits)
        records: list[Record] = [
            with_cut({"label": names[index], "score": float(score)}, prepared.cut) for index, score in enumerate(scores)
        ]
        if settings["top_k"] == "":
            return records if settings["return_all_scores"] else records[int(scores.argmax())]
        return sorted(records, key=lambda record: -record["score"])[: settings["top_k"]]


def _is_nested_pair(given: Any) -> bool:
    """[["text", "pair"]]: how pairs were passed before dicts."""
    return (
        isinstance(given, list)
        and len(given) == 1
        and isinstance(given[0], list)
        and len(given[0]) == 2
        and all(isinstance(text, str) for text in given[0])
    )
