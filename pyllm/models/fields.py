"""Reads the fields of a config.json: types and ranges checked, everything wrong collected and raised together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint.quantized import parse_scheme
from ..errors import InvalidConfigError, UnsupportedModelError

LARGEST = 2**31 - 1  # sizes and ids are int32 in the core
MAX_LAYERS = 4096
MAX_HEAD_DIM = 65536
MAX_PROBLEM = 500  # characters of one problem: a message must not repeat a value of any length
TINY, HUGE = 1e-30, 1e30  # well within float32
_MISSING = object()
# What GPT-2's fields, and those of its relatives, are called elsewhere; transformers reads both.
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


class Fields:
    """The fields of one config.json. A method whose field is wrong notes the problem and returns a falsy value.

    also: other names that files have for some fields, {other name: the name asked for} (transformers' attribute_map).
    """

    def __init__(self, config: Mapping[str, Any], also: Mapping[str, str] | None = None) -> None:
        self._config = dict(config)
        self._invalid: list[str] = []
        self._unsupported: list[str] = []
        self._written: dict[str, str] = {}  # name asked for -> as the file has it
        for other, name in (also or {}).items():
            value, own = config.get(other), self._config.get(name)
            if value is not None and own is not None and value != own:
                self.invalid(f"{other} and {name} are the same field, got {value!r} and {own!r}")
            if value is not None:
                self._config[name] = value
                self._written[name] = other
        if config.get("quantization_config") is not None:
            parse_scheme(config["quantization_config"], self._invalid, self._unsupported)

    def raw(self, name: str) -> Any:
        """The value as it stands, or None."""
        return self._config.get(name)

    def has(self, name: str) -> bool:
        """Whether the file mentions the field, be it as null."""
        return name in self._config

    def integers(self, name: str, *, below: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 to below - 1; missing or null: empty."""
        values = self._get(name, [])
        if isinstance(values, list) and all(type(value) is int and 0 <= value < below for value in values):
            return tuple(values)
        self.invalid(f"{self._name(name)} must be a list of whole numbers from 0 to {below - 1}, got {values!r:.80}")
        return ()

    def integer(self, name: str, default: Any = _MISSING, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number in [low, high]."""
        value = self._get(name, default)
        if value is None or (type(value) is int and low <= value <= high):
            return value or 0
        self.invalid(f"{self._name(name)} must be a whole number from {low} to {high}, got {value!r}")
        return 0

    def heads(self, width: str, heads: str) -> tuple[int, int, int]:
        """Model width, number of heads and head width, from two fields: the second must divide the first."""
        size, count = self.integer(width), self.integer(heads)
        if not size or not count:
            return size, count, 0
        if size % count:
            self.invalid(f"{width} must be a multiple of {heads}, got {size} and {count}")
            return size, count, 0
        if size // count > MAX_HEAD_DIM:
            self.invalid(f"heads may be {MAX_HEAD_DIM} wide, {width} / {heads} is {size // count}")
            return size, count, 0
        return size, count, size // count

    def kv_heads(self, name: str, heads: str, count: int) -> int:
        """Key/value heads, which must divide the query heads: there are `count`, from the field `heads`. Missing: as
        many."""
        shared = self.integer(name, count, low=1 if count else 0)
        if count and shared and count % shared:
            self.invalid(f"{heads} must be a multiple of {name}, got {count} and {shared}")
        return shared

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A number > 0 that float32 can hold."""
        value = self._get(name, default)
        if value is None or is_number(value):
            return float(value or 0.0)
        self.invalid(f"{self._name(name)} must be a number > 0, got {value!r}")
        return 0.0

    def flag(self, name: str, default: bool) -> bool:
        """true or false; null means the default."""
        value = self._get(name, default)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.invalid(f"{self._name(name)} must be true or false, got {value!r}")
        return False

    def choice(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """The value in `known` under the field's text; another text is unsupported."""
        value = self._get(name, default)
        if isinstance(value, str) and value in known:
            return known[value]
        if isinstance(value, str):
            self.unsupported(f"{self._name(name)} {value!r} (supported: {', '.join(known)})")
        else:
            self.invalid(f"{self._name(name)} must be a text, got {value!r}")
        return known[default]

    def invalid(self, problem: str) -> None:
        """Notes something that is wrong in any case."""
        self._invalid.append(_shortened(problem))

    def unsupported(self, problem: str) -> None:
        """Notes something that is right but that pyllm has no description for."""
        self._unsupported.append(_shortened(problem))

    def finish(self) -> None:
        """Raises InvalidConfigError, or else UnsupportedModelError, with every problem noted."""
        if self._invalid:
            raise InvalidConfigError(f"[config.json] {'; '.join(self._invalid)}. Correct the file")
        if self._unsupported:
            listed = "; ".join(self._unsupported)
            raise UnsupportedModelError(
                f"[config.json] a {self.raw('model_type')} model must do without: {listed}. Use another checkpoint"
            )

    def _name(self, name: str) -> str:
        """The field as the file calls it."""
        return self._written.get(name, name)

    def _get(self, name: str, default: Any) -> Any:
        value = self._config.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            self.invalid(f"{name} is missing")
            return None
        return default


def is_number(value: Any, low: float = TINY, high: float = HUGE) -> bool:
    """An int or float (no bool) in [low, high]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _shortened(problem: str) -> str:
    return problem if len(problem) <= MAX_PROBLEM else f"{problem[:MAX_PROBLEM]} ..."
