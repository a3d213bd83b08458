"""Tasks with transformers' call and return shapes: `pipeline(task, model)`. One file per task."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, overload

from ..engine.loading import FOREIGN, default_model, load
from ..engine.model import Model
from ..errors import InvalidOptionError, UnknownOptionError
from .embeddings import EmbeddingsPipeline, SentenceSimilarityPipeline
from .feature_extraction import FeatureExtractionPipeline
from .fill_mask import FillMaskPipeline
from .question_answering import QuestionAnsweringPipeline
from .summarization import SummarizationPipeline
from .text2text import Text2TextPipeline
from .text_classification import TextClassificationPipeline
from .text_generation import TextGenerationPipeline
from .token_classification import TokenClassificationPipeline
from .translation import TranslationPipeline, translation_between
from .zero_shot_classification import ZeroShotClassificationPipeline

# A task's class has option_names(), check_options(options), and is made of a loaded model and defaults of its calls.
TASKS: dict[str, Any] = {
    "text-generation": TextGenerationPipeline,
    "translation": TranslationPipeline,  # and translation_xx_to_yy, see _task
    "summarization": SummarizationPipeline,
    "text2text-generation": Text2TextPipeline,
    "question-answering": QuestionAnsweringPipeline,
    "fill-mask": FillMaskPipeline,
    "text-classification": TextClassificationPipeline,
    "sentiment-analysis": TextClassificationPipeline,
    "token-classification": TokenClassificationPipeline,
    "ner": TokenClassificationPipeline,
    "zero-shot-classification": ZeroShotClassificationPipeline,
    "feature-extraction": FeatureExtractionPipeline,
    "sentence-similarity": SentenceSimilarityPipeline,
    "embeddings": EmbeddingsPipeline,
}
# What transformers 4 took when no model was named: large downloads, so here they are named only.
_USUAL = {
    "sentiment-analysis": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    "text-classification": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    "token-classification": "dbmdz/bert-large-cased-finetuned-conll03-english",
    "ner": "dbmdz/bert-large-cased-finetuned-conll03-english",
    "question-answering": "distilbert/distilbert-base-cased-distilled-squad",
    "fill-mask": "distilbert/distilroberta-base",
    "summarization": "sshleifer/distilbart-cnn-12-6",
    "translation": "google-t5/t5-base",
    "text2text-generation": "google-t5/t5-base",
    "zero-shot-classification": "facebook/bart-large-mnli",
    "feature-extraction": "distilbert/distilbert-base-cased",
}
_Model: TypeAlias = "str | os.PathLike[str] | Model | None"
LOADING = frozenset({*(load.__kwdefaults__ or {}), *FOREIGN})  # names of the loading options


@overload
def pipeline(task: Literal["text-generation"], model: _Model = None, **options: Any) -> TextGenerationPipeline: ...
@overload
def pipeline(task: Literal["translation"], model: _Model = None, **options: Any) -> TranslationPipeline: ...
@overload
def pipeline(task: Literal["summarization"], model: _Model = None, **options: Any) -> SummarizationPipeline: ...
@overload
def pipeline(task: Literal["text2text-generation"], model: _Model = None, **options: Any) -> Text2TextPipeline: ...
@overload
def pipeline(
    task: Literal["question-answering"], model: _Model = None, **options: Any
) -> QuestionAnsweringPipeline: ...
@overload
def pipeline(task: Literal["fill-mask"], model: _Model = None, **options: Any) -> FillMaskPipeline: ...
@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], model: _Model = None, **options: Any
) -> TextClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["token-classification", "ner"], model: _Model = None, **options: Any
) -> TokenClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: _Model = None, **options: Any
) -> ZeroShotClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["feature-extraction"], model: _Model = None, **options: Any
) -> FeatureExtractionPipeline: ...
@overload
def pipeline(
    task: Literal["sentence-similarity"], model: _Model = None, **options: Any
) -> SentenceSimilarityPipeline: ...
@overload
def pipeline(task: Literal["embeddings"], model: _Model = None, **options: Any) -> EmbeddingsPipeline: ...
@overload
def pipeline(task: str = "", model: _Model = None, **options: Any) -> Any: ...
def pipeline(task: str = "", model: _Model = None, *, tokenizer: Any = None, **options: Any) -> Any:
    """The pipeline of a task on a model: called with inputs, it gives what transformers' pipeline of that name gives.

    task      "text-generation", "translation", "translation_xx_to_yy" (languages xx and yy), "summarization",
              "text2text-generation", "question-answering", "fill-mask", "text-classification" ("sentiment-analysis"),
              "token-classification" ("ner"), "zero-shot-classification", "feature-extraction", "sentence-similarity",
              "embeddings"
    model     a folder, a Hub id, a loaded model; for text-generation also None: the small model that comes with pyllm
    tokenizer the model's own, for calls written for transformers: its `tokenizer`, folder or Hub id; nothing else
    options   loading options (see `pyllm.load`: dtype, device, revision, ...); all others are defaults of every call

    Raises InvalidOptionError for an unknown task, UnknownOptionError, UnsupportedModelError for a model that the task
    can't use, and what `pyllm.load` raises.
    """
    kind = _task(task)
    _check_tokenizer(tokenizer, model)
    loading = {name: value for name, value in options.items() if name in LOADING}
    calling = {name: value for name, value in options.items() if name not in LOADING}
    if wrong := _misspelt_loading(calling, kind.option_names()):
        raise UnknownOptionError("[pipeline] " + "; ".join(wrong))
    if isinstance(model, Model):
        if loading:
            raise InvalidOptionError(
                f"[pipeline] a loaded model takes no loading options, got {', '.join(sorted(loading))}; "
                "give them to pyllm.load"
            )
        return kind(model, **calling)
    kind.check_options(calling)  # before a long load
    if model is None:
        if kind is not TextGenerationPipeline:
            usual = _USUAL.get("translation" if task.startswith("translation") else task)
            hint = f" (transformers took {usual!r})" if usual else ""
            raise InvalidOptionError(
                f"[pipeline] {task} needs a model, got none; pass model= a folder or a Hub id{hint}"
            )
        model = default_model()
    loaded = load(model, **loading)
    try:
        return kind(loaded, **calling)
    except BaseException:
        loaded.close()
        raise


def _task(task: str) -> Any:
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    if isinstance(task, str) and (between := translation_between(task)) is not None:
        return between
    near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.5) if isinstance(task, str) else []
    hint = f", did you mean {near[0]!r}?" if near else ""
    got = repr(task) if task else "none (a model alone does not tell); name one"
    raise InvalidOptionError(f"[pipeline] the tasks are {', '.join(TASKS)}, got {got}{hint}")


def _check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Raises InvalidOptionError for a tokenizer that is not the model's."""
    if tokenizer is None:
        return
    own = (model.folder, model.tokenizer) if isinstance(model, Model) else (model,)
    if not any(tokenizer is each or str(tokenizer) == str(each) for each in own):
        raise InvalidOptionError(
            f"[pipeline] a model's tokenizer lies in its folder, got tokenizer={tokenizer!r:.80} beside it; leave it "
            "out, or put its files into that folder"
        )


def _misspelt_loading(calling: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """A sentence for each option that is unknown and comes nearest to a loading option."""
    found = []
    for name in sorted(calling.keys() - known):
        near = difflib.get_close_matches(name, sorted(known | LOADING), n=1, cutoff=0.6)
        if near and near[0] in LOADING:
            found.append(f"there is no option {name!r}, did you mean {near[0]!r}?")
    return found
