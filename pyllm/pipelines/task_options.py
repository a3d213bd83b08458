"""Checking the options of tasks that have a table of them, and the options that all of these tasks share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOptionError, UnknownOptionError
from .windows import STRATEGIES


@dataclass(frozen=True)
class Option:
    """must: the rule in words. None as a value stands for the default, unless `keeps_none`."""

    default: Any
    fits: Callable[[Any], bool]
    must: str
    keeps_none: bool = False


Table = Mapping[str, Option]
Settings = dict[str, Any]


def flag(default: bool | None = False) -> Option:
    """True or False."""
    return Option(default, lambda value: isinstance(value, bool), "be True or False")


def count(default: int | None = None, least: int = 1) -> Option:
    """A whole number."""
    return Option(default, lambda value: type(value) is int and value >= least, f"be an integer >= {least}")


def choice(default: str | None, names: Collection[str]) -> Option:
    """One of some names."""
    return Option(default, lambda value: isinstance(value, str) and value in names, f"be one of {', '.join(names)}")


def text(default: str | None = None) -> Option:
    """A str."""
    return Option(default, lambda value: isinstance(value, str), "be a str")


def strings(default: Any = None) -> Option:
    """A str, or a list of some."""
    return Option(default, _are_strings, "be a str or a list of str, not empty")


# padding and num_workers do nothing here: texts run without padding, and there is nothing to load.
COMMON: Table = {
    "batch_size": count(),
    "num_workers": Option(None, lambda value: type(value) is int, "be an integer"),
    "padding": Option(None, lambda value: isinstance(value, (bool, str)), "be True, False or a str"),
}
CUTTING: Table = {
    "truncation": Option(
        False,
        lambda value: isinstance(value, bool) or value in STRATEGIES,
        f"be True, False or one of {', '.join(STRATEGIES)}",
    ),
    "max_length": count(),
    "tokenizer_kwargs": Option(None, lambda value: isinstance(value, Mapping), "be a dict"),
}


def read(where: str, table: Table, options: Mapping[str, Any]) -> Settings:
    """Every option of the table with its value. Raises UnknownOptionError or InvalidOptionError listing everything."""
    options = _unpacked(table, options)
    unknown = [unknown_option(name, table) for name in options if name not in table]
    problems = [
        f"{name} must {table[name].must}, got {value!r:.80}"
        for name, value in options.items()
        if name in table and value is not None and not table[name].fits(value)
    ]
    if "max_length" in table and options.get("max_length") is not None and not _cuts(options.get("truncation")):
        problems.append("max_length needs truncation=True, without it nothing is cut")
    if unknown or problems:
        raise (UnknownOptionError if unknown else InvalidOptionError)(f"[{where}] " + "; ".join(unknown + problems))
    given = {name: value for name, value in options.items() if value is not None or table[name].keeps_none}
    return {name: option.default for name, option in table.items()} | given


def strategy(settings: Settings, default: str = "longest_first") -> str:
    """How the tokenizer may cut, by transformers' names. default: what truncation=True stands for."""
    value = settings["truncation"]
    if isinstance(value, bool):
        return default if value else "do_not_truncate"
    return str(value)


def unknown_option(name: str, known: Collection[str]) -> str:
    """A sentence that names the nearest option there is."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"there is no option {name!r}" + (f", did you mean {near[0]!r}?" if near else "")


def _unpacked(table: Table, options: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' tokenizer_kwargs={"truncation": True} is another way to say truncation=True."""
    found = dict(options)
    for name in ("tokenizer_kwargs", "tokenize_kwargs"):
        if name in table and isinstance(options.get(name), Mapping):
            found |= found.pop(name)
    return found


def _cuts(truncation: Any) -> bool:
    return truncation not in (None, False, "do_not_truncate")


def _are_strings(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(each, str) for each in value)
