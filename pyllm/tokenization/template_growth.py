"""How large the results of a template's operators, filters and methods can be, known before they are computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.utils import Namespace

TOO_MUCH = 1 << 60
MAX_TEXT = 10_000_000  # characters of the result, and of any value; an item of a list counts as 16
CONTAINERS = (list, tuple, set, frozenset, dict, Namespace)
MAX_BITS = 1 << 14  # of an integer
MAX_WIDTH = 9999  # of a field in a format
SLOW_TEXT = 100_000  # characters that a filter written in Python may get
SLOW_FILTERS = frozenset({"pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"})
# A width or precision above MAX_WIDTH, or one that comes from the arguments.
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\d{5}|\*|\d*\.(\d{5}|\*))")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*\d{5}")
_NESTED = re.compile(r"\{[^{}]*\{")


def weight(value: Any, most: int) -> int:
    """Characters, and 16 an item, in nested containers, shared parts counted each time; stops beyond `most`."""
    total = 0
    stack = [iter((value,))]
    while stack:
        for item in stack[-1]:
            total += 16
            if isinstance(item, (str, bytes)):
                total += len(item)
            elif isinstance(item, dict):
                stack.append(iter([*item, *item.values()]))
                break
            elif isinstance(item, Namespace):
                stack.append(iter([object.__getattribute__(item, "_Namespace__attrs")]))
                break
            elif isinstance(item, CONTAINERS):
                stack.append(iter(item))
                break
            if total > most:
                return total
        else:
            stack.pop()
        if total > most or len(stack) > most:
            return most + 1
    return total


def _add(left: Any, right: Any) -> int:
    return _size(left) + _size(right)


def _multiply(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return TOO_MUCH if left.bit_length() + right.bit_length() > MAX_BITS else 0
    if isinstance(left, int):
        left, right = right, left
    return _size(left) * max(right, 0) if isinstance(right, int) else 0


def _power(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        return TOO_MUCH if left.bit_length() * right > MAX_BITS else 0
    return 0


def _percent(left: Any, right: Any) -> int:
    if not isinstance(left, (str, bytes)):
        return 0
    text = left if isinstance(left, str) else left.decode("latin-1")
    return TOO_MUCH if _WIDE_PERCENT.search(text) else _formatted(text, "%", [right])


OPERATOR_GROWTH: dict[str, Callable[[Any, Any], int]] = {"+": _add, "*": _multiply, "**": _power, "%": _percent}


def _size(value: Any) -> int:
    """Characters of a text, or of the items of a list: what stands for it when it is copied."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return 16 * len(value) + sum(len(item) for item in value if isinstance(item, (str, bytes)))
    return 0


def _printed(value: Any) -> int:
    """At most how many characters a value has when it is printed, roughly."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return 4 * weight(value, MAX_TEXT)


def _formatted(text: str, mark: str, arguments: Sequence[Any]) -> int:
    return (
        len(text)
        + (text.count(mark) * (MAX_WIDTH if re.search(r"\d{3}", text) else 100))
        + (text.count(mark) * max(map(_printed, arguments), default=0))
    )


def _braces(text: str, arguments: Sequence[Any]) -> int:
    if _WIDE_BRACES.search(text) or _NESTED.search(text):
        return TOO_MUCH
    return _formatted(text, "{", arguments)


def _replaced(text: str, old: Any, new: Any) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + (text.count(old) * len(new) if len(new) > len(old) else 0)


def _joined(separator: Any, items: Any) -> int:
    if isinstance(items, (list, tuple, set, frozenset, dict, str)):
        return sum(map(_printed, items)) + len(items) * len(str(separator))
    return 0 if len(str(separator)) < 1000 else TOO_MUCH


def _number(value: Any) -> int:
    return min(abs(value), TOO_MUCH) if isinstance(value, int) else 0


def method_growth(method: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """At most how large the result of calling a method of a builtin type is; 0 for anything that does not grow."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    values = [*args, *kwargs.values()]
    if isinstance(owner, (str, bytes)):
        if name in ("center", "ljust", "rjust", "zfill"):
            return max([len(owner), *map(_number, values)])
        if name == "expandtabs":
            return len(owner) * max([8, *map(_number, values)])
        if isinstance(owner, bytes) and name in ("replace", "join"):
            return TOO_MUCH
    if isinstance(owner, str):
        if name == "replace" and len(values) >= 2:
            return _replaced(owner, values[0], values[1])
        if name == "join" and values:
            return _joined(owner, values[0])
        if name in ("format", "format_map"):
            return _braces(owner, values)
        if name == "translate":
            return len(owner) * max(map(_printed, values), default=1)
    if name in ("to_bytes", "from_bytes"):
        return TOO_MUCH if any(_number(value) > MAX_BITS for value in values) else 0
    return 0


def filter_growth(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """At most how large the result of a filter is; 0 for those that give no more than they get."""
    values = [*args, *kwargs.values()]
    if name in SLOW_FILTERS:
        return TOO_MUCH if _printed(value) > 4 * SLOW_TEXT else 0
    if name in ("center", "batch", "slice"):
        return max([0, *map(_number, values)])
    if name == "indent":
        longest = max([4, *map(_number, values), *(len(item) for item in values if isinstance(item, str))])
        return (str(value).count("\n") + 1) * longest + len(str(value))
    if name == "replace" and len(values) >= 2:
        return _replaced(str(value), values[0], values[1])
    if name == "join":
        return _joined(values[0] if values else "", value)
    if name == "format":
        text = str(value)
        return TOO_MUCH if _WIDE_PERCENT.search(text) else _formatted(text, "%", values)
    if name == "tojson":
        wide = any(_number(item) > 64 or (isinstance(item, str) and len(item) > 64) for item in values)
        return TOO_MUCH if wide else 0
    return 0
