"""Options of the text-generation pipeline itself; all others belong to generation."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ..decode.options import ALIASES, GenerationOptions
from ..errors import InvalidOptionError, UnknownOptionError

_FLAGS = (
    "return_full_text",
    "return_tensors",
    "return_text",
    "add_special_tokens",
    "skip_special_tokens",
    "clean_up_tokenization_spaces",
    "continue_final_message",
    "include_stop_str_in_output",
    "truncation",
)
CHATS = ("continue_final_message", "tools", "documents", "tokenizer_encode_kwargs")  # for messages only
_IDLE = ("padding", "num_workers")  # texts run without padding, and there is nothing to load
NAMES = (*_FLAGS, *CHATS, *_IDLE, "stop_sequence", "prefix", "suffix", "batch_size", "handle_long_generation")
GENERATION = frozenset({*GenerationOptions.__dataclass_fields__, *ALIASES}) - {"given"}


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(own options that are set, options for generation). `stop_sequence` becomes generation's `stop_strings`.

    Raises InvalidOptionError for wrong values, UnknownOptionError for names that are nearest to one of the pipeline's.
    """
    own = {name: options[name] for name in NAMES if options.get(name) is not None}
    generation = {name: value for name, value in options.items() if name not in NAMES}
    unknown, problems = misspelt(generation, NAMES), _problems(own)
    stops = [name for name in generation if ALIASES.get(name, name) == "stop_strings" and generation[name] is not None]
    if "stop_sequence" in own and stops:
        problems.append(f"stop_sequence and {stops[0]} are the same option, give one")
    if unknown or problems:
        kind = UnknownOptionError if unknown else InvalidOptionError
        raise kind("[pipeline] " + "; ".join(unknown + problems))
    if "stop_sequence" in own:
        generation["stop_strings"] = own.pop("stop_sequence")
    return own, generation


def kind(own: Mapping[str, Any]) -> str:
    """What a record holds: "full" text, "new" text or "tensors". Raises InvalidOptionError for contradictions."""
    asked = [name for name in ("return_full_text", "return_tensors", "return_text") if name in own]
    if len(asked) > 1:
        raise InvalidOptionError(f"[pipeline] {' and '.join(asked)} exclude each other; give one")
    if own.get("clean_up_tokenization_spaces"):
        raise InvalidOptionError(
            "[pipeline] clean_up_tokenization_spaces=True would change the text that was generated; leave it out"
        )
    if own.get("return_tensors"):
        return "tensors"
    return "new" if own.get("return_full_text") is False else "full"


def misspelt(generation: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """A sentence for each option that is unknown and comes nearest to one of `names`, not to one of generation's."""
    known = {*GENERATION, *NAMES}
    found = []
    for name in generation.keys() - known:
        near = difflib.get_close_matches(name, sorted({*names, *known}), n=1, cutoff=0.6)
        if near and near[0] in names:
            found.append(f"there is no option {name!r}, did you mean {near[0]!r}?")
    return sorted(found)


def _problems(own: Mapping[str, Any]) -> list[str]:
    flags = [name for name in _FLAGS if not isinstance(own.get(name, True), bool)]
    problems = [f"{name} must be True or False, got {own[name]!r}" for name in flags]
    size = own.get("batch_size", 1)
    if type(size) is not int or size < 1:
        problems.append(f"batch_size must be an integer >= 1 or None, got {size!r}")
    if not isinstance(own.get("prefix", ""), str):
        problems.append(f"prefix must be a str, got {own['prefix']!r}")
    suffix = own.get("suffix", "")
    if not isinstance(suffix, str) and not (isinstance(suffix, list) and all(isinstance(each, str) for each in suffix)):
        problems.append(f"suffix must be a str, or a list of str for a list of prompts, got {suffix!r:.80}")
    if own.get("handle_long_generation", "hole") != "hole":
        problems.append(f"handle_long_generation must be 'hole' or None, got {own['handle_long_generation']!r:.80}")
    problems += [
        f"{name} must be a list, got {own[name]!r:.80}"
        for name in ("tools", "documents")
        if not isinstance(own.get(name, []), (list, tuple))
    ]
    if not isinstance(own.get("tokenizer_encode_kwargs", {}), Mapping):
        problems.append(f"tokenizer_encode_kwargs must be a dict, got {own['tokenizer_encode_kwargs']!r:.80}")
    return problems
