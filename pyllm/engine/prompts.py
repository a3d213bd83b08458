"""Reads what callers pass as prompts into lists of token ids, and bounds lengths that nobody asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..decode.options import GenerationOptions
from ..errors import PromptError

Prompt: TypeAlias = "str | Sequence[int] | NDArray[np.integer[Any]]"
Prompts: TypeAlias = "Sequence[str | Sequence[int] | NDArray[np.integer[Any]]]"

_KINDS = "a str, a list of token ids, or a list of either"


def read_prompts(
    prompt: Prompt | Prompts, encode: Callable[[str], list[int]], where: str = "generate"
) -> tuple[list[list[int]], bool]:
    """(token ids of each prompt, whether it was a single one). Raises PromptError, which names `where`."""
    if isinstance(prompt, str):
        return [encode(prompt)], True
    if hasattr(prompt, "tolist"):  # NumPy's and every other library's arrays
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise PromptError(f"[{where}] a text is {_KINDS}, got {type(prompt).__name__}; pass one of these")
    if len(prompt) == 0 or _is_id(prompt[0]):
        return [_ids(prompt, where)], True
    return [encode(item) if isinstance(item, str) else _ids(item, where) for item in prompt], False


def read_prompt(prompt: Prompt, encode: Callable[[str], list[int]], where: str = "generate") -> list[int]:
    """Token ids of the one prompt. Raises PromptError, also for several."""
    prompts, single = read_prompts(prompt, encode, where)
    if not single:
        raise PromptError(f"[{where}] one text at a time here, got a list of {len(prompts)}; call once for each")
    return prompts[0]


def read_ids(ids: Any, where: str, name: str) -> list[int]:
    """Token ids of an argument that takes nothing else. Raises PromptError, which names `where` and `name`."""
    items = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)) or not all(map(_is_id, items)):
        got = f"{items!r:.80}" if isinstance(items, Sequence) else type(items).__name__
        raise PromptError(f"[{where}] {name} must be a list of token ids, got {got}; pass integers")
    return [int(token) for token in items]


def read_id_lists(lists: Any, where: str, name: str) -> list[list[int]]:
    """`read_ids` of an argument that holds a list for each text. Raises PromptError."""
    items = lists.tolist() if hasattr(lists, "tolist") else lists
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)):
        raise PromptError(f"[{where}] {name} must be a list for each text, got {type(items).__name__}; pass lists")
    return [read_ids(each, where, f"{name}[{index}]") for index, each in enumerate(items)]


def bounded(options: GenerationOptions, prompt_length: int, max_positions: int) -> GenerationOptions:
    """Options whose length ends at the context where it came from a file or a default. What the caller asked for stays
    as it is, and is refused later when it doesn't fit."""
    room = max_positions - prompt_length
    if room < 1:
        return options
    if options.max_new_tokens is not None:
        if "max_new_tokens" not in options.given and options.max_new_tokens > room:
            return dataclasses.replace(options, max_new_tokens=room)
    elif options.max_length is not None and "max_length" not in options.given and options.max_length > max_positions:
        return dataclasses.replace(options, max_length=max_positions)
    return options


def _is_id(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _ids(prompt: object, where: str) -> list[int]:
    items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)) or not all(map(_is_id, items)):
        raise PromptError(f"[{where}] a text is {_KINDS}, got {items!r:.80}; pass one of these")
    return [int(token) for token in items]
