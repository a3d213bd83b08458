"""Reads the fields of a config.json: types and ranges checked, everything wrong collected and raised together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidConfigError, UnsupportedModelError

LARGEST = 2**31 - 1  # sizes and ids are int32 in the core
MAX_LAYERS = 4096
TINY, HUGE = 1e-30, 1e30  # well within float32
_MISSING = object()


class Fields:
    """The fields of one config.json. A method whose field is wrong notes the problem and returns a falsy value."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._invalid: list[str] = []
        self._unsupported: list[str] = []
        if config.get("quantization_config") is not None:
            method = config["quantization_config"]
            method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
            self.unsupported(f"quantization_config: weights quantised by {method!r}")

    def raw(self, name: str) -> Any:
        """The value as it stands, or None."""
        return self._config.get(name)

    def integer(self, name: str, default: Any = _MISSING, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number in [low, high]."""
        value = self._get(name, default)
        if value is None or (type(value) is int and low <= value <= high):
            return value or 0
        self.invalid(f"{name} must be a whole number from {low} to {high}, got {value!r}")
        return 0

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A number > 0 that float32 can hold."""
        value = self._get(name, default)
        if value is None or is_number(value):
            return float(value or 0.0)
        self.invalid(f"{name} must be a number > 0, got {value!r}")
        return 0.0

    def flag(self, name: str, default: bool) -> bool:
        """true or false; null means the default."""
        value = self._get(name, default)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.invalid(f"{name} must be true or false, got {value!r}")
        return False

    def choice(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """The value in `known` under the field's text; another text is unsupported."""
        value = self._get(name, default)
        if isinstance(value, str) and value in known:
            return known[value]
        if isinstance(value, str):
            self.unsupported(f"{name} {value!r} (supported: {', '.join(known)})")
        else:
            self.invalid(f"{name} must be a text, got {value!r}")
        return known[default]

    def invalid(self, problem: str) -> None:
        """Notes something that is wrong in any case."""
        self._invalid.append(problem)

    def unsupported(self, problem: str) -> None:
        """Notes something that is right but that pyllm has no description for."""
        self._unsupported.append(problem)

    def finish(self) -> None:
        """Raises InvalidConfigError, or else UnsupportedModelError, with every problem noted."""
        if self._invalid:
            raise InvalidConfigError(f"[config.json] {'; '.join(self._invalid)}. Correct the file")
        if self._unsupported:
            listed = "; ".join(self._unsupported)
            raise UnsupportedModelError(
                f"[config.json] a {self.raw('model_type')} model must do without: {listed}. Use another checkpoint"
            )

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
