"""Reading the JSON files of a model folder with limits, each problem a typed error with file and position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import PyllmError

MAX_BYTES = 512 << 20  # the largest tokenizer.json files are some tens of MB
MAX_DIGITS = 100


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """object_pairs_hook that refuses a key with two values: its meaning would depend on the reader."""
    result = dict(pairs)
    if len(result) != len(pairs):
        for key, value in pairs:
            if result[key] != value:
                raise ValueError(f"key {key!r} appears with different values")
    return result


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """object_pairs_hook that refuses duplicate keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"key {key!r} appears twice")
        seen.add(key)
    return dict(pairs)


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # converting costs the square of the length
        raise ValueError(f"an integer has {len(digits)} digits")
    if digits == "-0":
        raise ValueError("-0 is no integer")
    return int(digits)


def parse_json(text: str, *, strict: bool = False) -> Any:
    """json.loads that raises only ValueError, for any text. `strict`: no NaN, no Infinity, no repeated keys."""

    def refuse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_object if strict else _object,
            parse_int=_parse_int,
            parse_constant=refuse_constant if strict else None,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_object(path: Path, error: type[PyllmError]) -> dict[str, Any]:
    """The JSON object in `path`. Raises `error` naming the file, and line and column where it is malformed."""
    where = f"[{path.name}]"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{where} may hold {MAX_BYTES} bytes, {path} is larger, check the file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise error(f"{where} {path} cannot be read: {problem.strerror or problem}, check the file") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{where} must be UTF-8, {path} is not at byte {problem.start}, write it again") from problem
    try:
        value = parse_json(text)
    except json.JSONDecodeError as problem:
        at = f"line {problem.lineno} column {problem.colno}"
        raise error(f"{where} must be JSON, {path} is malformed at {at}: {problem.msg}, correct it") from problem
    except ValueError as problem:
        raise error(f"{where} must be JSON, {path} is malformed: {problem}, correct it") from problem
    if not isinstance(value, dict):
        raise error(f"{where} must hold a JSON object, {path} holds a {type(value).__name__}, correct it")
    return value
