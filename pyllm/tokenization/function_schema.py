"""JSON schema of a Python function, from its type hints and Google docstring, as transformers' get_json_schema."""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import TokenizerError

NAMES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
SCALARS = (int, float, str, bool, type(None))
_SECTION = r"[\n\s]*(Args:|Returns:|Raises:|\Z)"
# One entry of the Args section: its indentation, name, optional "(type)", and text up to the next entry.
_ENTRY = re.compile(
    r"(?:^|\n)([ \t]*)(\w+)(?:[ \t]*\([^()\n]*\))?:\s*(.*?)\s*(?=\n(?!\1[ \t])[ \t]*\w+(?:[ \t]*\([^()\n]*\))?:|\Z)",
    re.DOTALL,
)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Raises TokenizerError for what has no docstring, no description or no hint of an argument, or other types."""
    name = getattr(function, "__name__", "operation")
    docstring = (inspect.getdoc(function) or "").strip()
    if not docstring:
        raise _refused(name, "it has no docstring")
    description = re.search(f"^(.*?){_SECTION}", docstring, re.DOTALL)
    descriptions = _arguments(docstring)
    returned = re.search(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(Raises:|\Z)", docstring, re.DOTALL)
    parameters, returns = _parameters(function, name)
    for argument, schema in parameters["properties"].items():
        if argument not in descriptions:
            raise _refused(name, f"its docstring does not describe the argument {argument}")
        text = descriptions[argument]
        choices = re.search(r"\(choices:\s*(.*?)\)\s*$", text, re.IGNORECASE)
        if choices:
            try:
                values = json.loads(choices[1])
                if not isinstance(values, list):
                    raise ValueError(values)
            except (ValueError, RecursionError):
                raise _refused(name, f"the choices of {argument} are not JSON") from None
            schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
            text = text[: choices.start()].strip()
        schema["description"] = text
    main = description[1].strip() if description else None
    out: dict[str, Any] = {"name": name, "description": main, "parameters": parameters}
    if returns is not None:
        if returned:
            returns["description"] = returned[1].strip()
        out["return"] = returns
    return {"type": "function", "function": out}


def _refused(name: str, why: str) -> TokenizerError:
    return TokenizerError(
        f"[tools] the function {name} needs a JSON schema, {why}, correct it or pass the schema itself"
    )


def _arguments(docstring: str) -> dict[str, str]:
    section = re.search(r"\n\s*Args:\n(.*?)[\n\s]*(Returns:|Raises:|\Z)", docstring, re.DOTALL)
    if section is None:
        return {}
    lines = "\n".join(line for line in section[1].split("\n") if line.strip())
    return {match[2]: re.sub(r"\s*\n+\s*", " ", match[3].strip()) for match in _ENTRY.finditer(lines)}


def _parameters(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(schema of the arguments, schema of what is returned)."""
    try:
        hints = get_type_hints(function)
    except Exception as error:  # hints may be any expression
        raise _refused(name, f"its type hints cannot be read ({error})") from error
    signature = inspect.signature(function).parameters
    first = next(iter(signature), None)
    bound = first if first in ("self", "cls") and first not in hints else None
    wanted = [parameter for key, parameter in signature.items() if key != bound]
    for parameter in wanted:
        if parameter.annotation is inspect.Parameter.empty:
            raise _refused(name, f"its argument {parameter.name} has no type hint")
    returns = None
    if "return" in hints:
        try:
            returns = _schema(hints["return"], name)
        except TokenizerError:  # what is returned need not be describable
            returns = None
    properties = {key: _schema(hint, name) for key, hint in hints.items() if key not in ("return", bound)}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    required = [parameter.name for parameter in wanted if parameter.default is inspect.Parameter.empty]
    if required:
        parameters["required"] = required
    return parameters, returns


def _schema(hint: Any, name: str) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint], name)
    if origin is None and hint in NAMES:
        return {"type": NAMES[hint]}
    if origin is Literal:
        return _choices(list(args), name)
    if origin in (Union, types.UnionType):
        return _union(args, name)
    if origin is list:
        return {"type": "array", "items": _schema(args[0], name)}
    if origin is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_schema(arg, name) for arg in args]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], name)}
    raise _refused(name, f"the type {hint!r:.60} has no JSON schema")


def _union(args: Sequence[Any], name: str) -> dict[str, Any]:
    parts = [_schema(arg, name) for arg in args if arg is not type(None)]
    if len(parts) == 1:
        out = parts[0]
    elif all(part.keys() == {"type"} and isinstance(part["type"], str) for part in parts):
        kinds = sorted({part["type"] for part in parts})
        out = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        out = {"anyOf": parts}
    if type(None) in args:
        out["nullable"] = True
    return out


def _choices(values: list[Any], name: str) -> dict[str, Any]:
    if not values or any(type(value) not in SCALARS for value in values):
        raise _refused(name, f"the choices {values!r:.60} are not JSON values")
    kinds = list(dict.fromkeys(NAMES[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}
