"""Checks of single option values: each takes what a user or a file gave and returns the clean value, or raises
ValueError with the rule that was broken. Combinations of options are options.py's matter."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Check = Callable[[Any], Any]
_NO_BOUND = math.inf


def integer(low: float = -_NO_BOUND, high: float = _NO_BOUND) -> Check:
    """A whole number in [low, high]; True and 2.0 are not whole numbers here."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise ValueError("be an integer" + _range(low, high))
        return int(value)

    return check


def number(low: float = -_NO_BOUND, high: float = _NO_BOUND, *, above: bool = False) -> Check:
    """A finite number in [low, high], or in (low, high] with `above`."""

    def check(value: Any) -> float:
        rule = f"be a number > {low:g}" if above else "be a number" + _range(low, high)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ValueError(rule)
        try:
            clean = float(value)
        except OverflowError:  # an int beyond every float
            raise ValueError(rule) from None
        if not math.isfinite(clean) or not low <= clean <= high or (above and clean == low):
            raise ValueError(rule)
        return clean

    return check


def boolean(value: Any) -> bool:
    """True or False, nothing that merely looks like it."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError("be True or False")
    return bool(value)


def early_stopping(value: Any) -> bool | str:
    """True, False or "never"."""
    if isinstance(value, str) and value == "never":
        return value
    if not isinstance(value, bool):
        raise ValueError('be True, False or "never"')
    return value


def ids(value: Any) -> tuple[int, ...]:
    """One token id or a list of them."""
    one = integer(0)
    try:
        return tuple(one(item) for item in (value if _is_list(value) else [value]))
    except ValueError:
        raise ValueError("be a token id or a list of token ids, each >= 0") from None


def one_id(value: Any) -> int:
    """One token id, or a list of one."""
    try:
        (clean,) = ids(value)
    except ValueError:
        raise ValueError("be one token id, >= 0") from None
    return clean


def logprobs(value: Any) -> int | None:
    """How many tokens' log-probabilities beside the chosen one's. True asks for that one only, False for nothing."""
    if isinstance(value, (bool, np.bool_)):
        return 0 if value else None
    return int(integer(0)(value))


def end_ids(value: Any) -> tuple[int, ...]:
    """As `ids`, repeats dropped; a negative id is some files' way to say "none" and is dropped as well."""
    one = integer()
    try:
        clean = [one(item) for item in (value if _is_list(value) else [value])]
    except ValueError:
        raise ValueError("be a token id or a list of token ids") from None
    return tuple(dict.fromkeys(token for token in clean if token >= 0))


def id_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    """A non-empty list of non-empty lists of token ids."""
    rule = "be a non-empty list of non-empty lists of token ids"
    if not _is_list(value) or not value or not all(_is_list(item) and len(item) for item in value):
        raise ValueError(rule)
    try:
        return tuple(ids(item) for item in value)
    except ValueError:
        raise ValueError(rule) from None


def sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, ...): bias} or [[[id, ...], bias], ...]; one id alone may stand for its tuple."""
    rule = "be a non-empty dict {(id, ...): bias} or list [[[id, ...], bias], ...]"
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not _is_list(pairs) or not pairs or not all(_is_list(pair) and len(pair) == 2 for pair in pairs):
        raise ValueError(rule)
    try:
        clean = {ids(_as_id(key)): _bias(bias) for key, bias in pairs}
    except (OverflowError, TypeError, ValueError):
        raise ValueError(rule) from None
    if () in clean:
        raise ValueError(rule)
    return tuple(clean.items())


def decay(value: Any) -> tuple[int, float]:
    """(start, factor)."""
    rule = "be a pair (start_index, decay_factor) of an integer and a number > 0"
    if not _is_list(value) or len(value) != 2:
        raise ValueError(rule)
    try:
        return integer()(value[0]), number(0, above=True)(value[1])
    except ValueError:
        raise ValueError(rule) from None


def strings(value: Any) -> tuple[str, ...]:
    """A non-empty string or a list of them."""
    items = [value] if isinstance(value, str) else value
    if not _is_list(items) or not all(isinstance(item, str) and item for item in items):
        raise ValueError("be a non-empty string or a list of non-empty strings")
    if any("\ud800" <= char <= "\udfff" for item in items for char in item):
        raise ValueError("be valid Unicode, without lone surrogates")
    return tuple(dict.fromkeys(items))


def functions(value: Any) -> tuple[Callable[..., Any], ...]:
    """A callable or a list of callables (a list may itself be callable, as transformers' lists are)."""
    items = value if _is_list(value) else [value]
    if not all(callable(item) for item in items):
        raise ValueError("be a callable or a list of callables")
    return tuple(items)


def function(value: Any) -> Callable[..., Any]:
    """One callable."""
    if not callable(value):
        raise ValueError("be a callable")
    return value  # type: ignore[no-any-return]


def streamer(value: Any) -> Any:
    """An object with put(token_ids) and end()."""
    if not callable(getattr(value, "put", None)) or not callable(getattr(value, "end", None)):
        raise ValueError("have the methods put(token_ids) and end()")
    return value


def assistant(value: Any) -> Any:
    """A loaded model or the path of one; which models will do is the engine's to say."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not callable(getattr(value, "generate", None)):
        raise ValueError("be a loaded LanguageModel, or a folder or Hub id of one")
    return value


def schedule(value: Any) -> str:
    """How the number of proposed tokens changes: "heuristic_transient" is what "heuristic" means here."""
    if not isinstance(value, str) or value not in ("constant", "heuristic", "heuristic_transient"):
        raise ValueError('be "constant", "heuristic" or "heuristic_transient"')
    return value


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _as_id(key: Any) -> Any:
    return int(key) if isinstance(key, str) else key  # the string keys of JSON objects


def _bias(value: Any) -> float:
    number_of = float(value)
    if isinstance(value, (bool, str)) or math.isnan(number_of):
        raise ValueError
    return number_of


def _range(low: float, high: float) -> str:
    if high == _NO_BOUND:
        return "" if low == -_NO_BOUND else f" >= {low:g}"
    return f" in [{low:g}, {high:g}]"
