"""Tasks with transformers' call and return shapes: `pipeline(task, model)`. One file per task."""

from __future__ import annotations

import difflib
import os
from typing import Any

from ..engine.language_model import LanguageModel
from ..engine.loading import default_model, load
from ..errors import InvalidOptionError, UnknownOptionError
from .own_options import misspelt
from .text_generation import TextGenerationPipeline

TASKS = {"text-generation": TextGenerationPipeline}
LOADING = frozenset(load.__kwdefaults__ or {})  # names of the loading options


def pipeline(
    task: str, model: str | os.PathLike[str] | LanguageModel | None = None, **options: Any
) -> TextGenerationPipeline:
    """The pipeline of a task on a model.

    task      "text-generation"
    model     a folder, a Hub id, a loaded LanguageModel, or None for the small model that comes with pyllm
    options   loading options (see `pyllm.load`: dtype, device, revision, ...); all others are defaults of every call

    Raises InvalidOptionError for an unknown task, and what `pyllm.load` raises.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise InvalidOptionError(f"[pipeline] the tasks are {', '.join(TASKS)}, got {task!r}{hint}")
    loading, calling = _split(options)
    if wrong := misspelt(calling, LOADING):
        raise UnknownOptionError("[pipeline] " + "; ".join(wrong))
    if isinstance(model, LanguageModel):
        if loading:
            raise InvalidOptionError(
                f"[pipeline] a loaded model takes no loading options, got {', '.join(sorted(loading))}; "
                "give them to pyllm.load"
            )
        loaded = model
    else:
        TASKS[task].check_options(calling)  # before a long load
        loaded = load(default_model() if model is None else model, **loading)
    return TASKS[task](loaded, **calling)


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(loading options, options of the calls)"""
    loading = {name: value for name, value in options.items() if name in LOADING}
    return loading, {name: value for name, value in options.items() if name not in LOADING}
