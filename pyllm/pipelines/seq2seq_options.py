"""Options of translation, summarization and text2text-generation: their own, and the layers of generation options."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from ..decode.options import ALIASES, DEFAULT_NEW_TOKENS, GenerationOptions
from ..errors import InvalidConfigError, InvalidOptionError, UnknownOptionError
from . import own_options, task_options
from .task_options import CUTTING, Option, Settings, Table, flag, strings, text

# transformers 4's defaults of these pipelines, for what no file and no caller sets.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "num_beams": 4}
_LENGTHS = ("max_length", "max_new_tokens")

OWN: Table = {
    **task_options.COMMON,
    "truncation": CUTTING["truncation"],
    "return_tensors": flag(),
    "return_text": flag(None),
    "clean_up_tokenization_spaces": flag(),
    "stop_sequence": strings(),
    "src_lang": text(),
    "tgt_lang": text(),
    "target_prefix": Option(None, task_options.strings().fits, "be a str, or a list of str with one for each input"),
    "return_scores": flag(),
    "return_alignments": flag(),
}


def split(task: str, table: Table, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """(own options with their values, options for generation). `stop_sequence` becomes generation's `stop_strings`.

    Raises InvalidOptionError for wrong values, UnknownOptionError for names that are nearest to one of the table's.
    """
    generation = {name: value for name, value in options.items() if name not in table}
    if unknown := own_options.misspelt(generation, table):
        raise UnknownOptionError(f"[{task}] " + "; ".join(unknown))
    settings = task_options.read(task, table, {name: options[name] for name in options if name in table})
    stops = [name for name in generation if ALIASES.get(name, name) == "stop_strings" and generation[name] is not None]
    if settings["stop_sequence"] is not None:
        if stops:
            raise InvalidOptionError(f"[{task}] stop_sequence and {stops[0]} are the same option, give one")
        generation["stop_strings"] = settings["stop_sequence"]
    if settings["return_text"] is False and not settings["return_tensors"]:
        raise InvalidOptionError(
            f"[{task}] return_text=False leaves nothing to return; set return_tensors=True as well"
        )
    return settings, generation


def check(asked: Mapping[str, Any]) -> None:
    """Raises InvalidOptionError or UnknownOptionError for generation options that no model's files make right."""
    several = asked.get("num_return_sequences")
    beams = several if type(several) is int and several > 4 else 4  # a file may well say so
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every call will warn of what it does not use
        GenerationOptions.build({**DEFAULTS, "num_beams": beams}, asked)


def task_parameters(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """config.json's task_specific_params of a task; {} without any. Raises InvalidConfigError."""
    every = config.get("task_specific_params") or {}
    own = every.get(task) or {} if isinstance(every, Mapping) else None
    if not isinstance(own, Mapping) or not isinstance(own.get("prefix") or "", str):
        raise InvalidConfigError(
            f"[config.json] task_specific_params must map tasks to options with a text as prefix, got {every!r:.80}; "
            "correct it"
        )
    return dict(own)


def generation(file: Mapping[str, Any], parameters: Mapping[str, Any], asked: Mapping[str, Any]) -> GenerationOptions:
    """The pipelines' defaults, under generation_config.json, under the task's parameters, under what was asked for.

    A length in one of these replaces the lengths below it. Raises InvalidOptionError, UnknownOptionError.
    """
    layers: dict[str, Any] = {}
    for layer in (DEFAULTS, file, parameters):
        known = {name: value for name, value in layer.items() if value is not None}
        if any(name in known for name in _LENGTHS):
            layers = {name: value for name, value in layers.items() if name not in _LENGTHS}
        layers |= known
    given = {ALIASES.get(name, name) for name in asked}
    if given & set(_LENGTHS):
        layers = {name: value for name, value in layers.items() if name not in _LENGTHS}
    return GenerationOptions.build(layers, asked)


def with_score(options: GenerationOptions) -> GenerationOptions:
    """Options whose results have a score: searches without beams add one up only where scores are kept."""
    return options if options.num_beams > 1 else dataclasses.replace(options, output_scores=True)


def most_new_tokens(options: GenerationOptions) -> int:
    """Tokens that a target may have after its start token, which max_length counts."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    return DEFAULT_NEW_TOKENS if options.max_length is None else options.max_length - 1
