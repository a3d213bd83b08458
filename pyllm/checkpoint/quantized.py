"""Quantised checkpoints seen as what the model needs: a tensor X.weight wherever a scheme stores several for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, InvalidConfigError, UnsupportedModelError
from .bitsandbytes import parse_bitsandbytes
from .checkpoint import Checkpoint
from .codes import Codes, Kind, QuantizedMatrix
from .compressed import parse_compressed
from .gptq import parse_awq, parse_gptq
from .json_file import read_json_object
from .mapped import TensorEntry

__all__ = ["Codes", "Kind", "QuantizedCheckpoint", "Scheme", "parse_scheme", "quantized_view"]

LISTED = 1000  # problems in one message


class Scheme(Protocol):
    """How a checkpoint is quantised: what parse_scheme makes of its configuration."""

    @property
    def method(self) -> str: ...
    def label(self) -> str: ...
    def collect(self, entries: dict[str, TensorEntry]) -> dict[str, QuantizedMatrix]: ...


METHODS: dict[str, Callable[[Mapping[str, Any], list[str], list[str]], Scheme]] = {
    "gptq": parse_gptq,
    "awq": parse_awq,
    "compressed-tensors": parse_compressed,
    "bitsandbytes": parse_bitsandbytes,
}
# Files beside a config.json without quantization_config, and the method they belong to.
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def parse_scheme(config: Any, invalid: list[str], unsupported: list[str]) -> Scheme | None:
    """The scheme of a quantization_config; notes what is wrong in any case, and what pyllm has no reader for."""
    if not isinstance(config, Mapping):
        invalid.append(f"quantization_config must be an object, got {config!r:.80}")
        return None
    method = config.get("quant_method")
    if method is None and (config.get("load_in_8bit") or config.get("load_in_4bit")):
        method = "bitsandbytes"  # transformers before 4.32 wrote no quant_method
    if not isinstance(method, str) or method not in METHODS:
        unsupported.append(
            f"quantization_config: weights quantised by {method!r:.80} (supported: {', '.join(METHODS)})"
        )
        return None
    for name in ("modules_to_not_convert", "llm_int8_skip_modules", "ignore"):
        modules = config.get(name)
        if modules is not None and not (isinstance(modules, list) and all(isinstance(each, str) for each in modules)):
            invalid.append(f"quantization_config.{name} must be a list of names, got {modules!r:.80}")
    return METHODS[method](config, invalid, unsupported)


class QuantizedCheckpoint(Checkpoint):
    """A checkpoint whose quantised matrices are whole tensors "X.weight" [outputs, inputs] of type F32.

    Matrices that the configuration leaves out, or that are stored as they were, are unchanged. kind and codes give
    the integers, for those who can use them.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme) -> None:
        """Raises CheckpointError listing everything that is wrong with the quantised tensors."""
        self._whole, self.scheme = checkpoint, scheme
        self.folder, self.config = checkpoint.folder, checkpoint.config
        self.generation_config = checkpoint.generation_config
        self._entries = checkpoint._entries
        self._matrices = scheme.collect(self._entries)
        hidden = {part: name for name, matrix in self._matrices.items() for part in matrix.parts.values()}
        problems = [problem for matrix in self._matrices.values() for problem in matrix.problems]
        problems += [
            f"{name} is stored both as it is and quantised"
            for name, matrix in self._matrices.items()
            if name in self._entries and name not in hidden
        ]
        self._kinds: dict[str, Kind] = {}
        if not problems:
            for name, matrix in self._matrices.items():
                self._kinds[name] = matrix.kind(checkpoint.tensor, problems)
                self.release(name)
        if problems:
            more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            raise CheckpointError(
                f"[checkpoint] quantised tensors must be those of {scheme.label()}, these are not:\n  "
                + "\n  ".join(problems[:LISTED])
                + f"{more}\nCheck that quantization_config and the weight files belong together"
            )
        self._names = list(dict.fromkeys(hidden.get(name, name) for name in checkpoint.names()))

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._matrices[name].shape if name in self._matrices else self._whole.shape(name)

    def dtype(self, name: str) -> str:
        return "F32" if name in self._matrices else self._whole.dtype(name)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        if name not in self._matrices:
            return self._whole.tensor(name)
        return self._matrices[name].floats(self._whole.tensor)

    def kind(self, name: str) -> Kind | None:
        return self._kinds.get(name)

    def codes(self, name: str) -> Codes | None:
        if name not in self._matrices or not self._kinds[name].bits:
            return None
        return self._matrices[name].codes(self._whole.tensor)

    def release(self, name: str) -> None:
        matrix = self._matrices.get(name)
        for part in [name] if matrix is None else matrix.parts.values():
            self._whole.release(part)

    def is_idle(self, name: str) -> bool:
        """Whether it is a bias of zeros beside a quantised weight: some quantisers write one for every module."""
        base, _, role = name.rpartition(".")
        return role == "bias" and f"{base}.weight" in self._matrices and not np.any(self._whole.tensor(name))

    def close(self) -> None:
        """Nothing: what it reads belongs to the other one."""


def quantized_view(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or how a model sees it where it is quantised. Raises InvalidConfigError,
    UnsupportedModelError, CheckpointError."""
    config, where = checkpoint.config.get("quantization_config"), "config.json"
    if isinstance(checkpoint, QuantizedCheckpoint):
        return checkpoint
    if config is None:
        config, where = _config_beside(checkpoint)
    if config is None:
        return checkpoint
    invalid: list[str] = []
    unsupported: list[str] = []
    scheme = parse_scheme(config, invalid, unsupported)
    if invalid:
        raise InvalidConfigError(f"[{where}] {'; '.join(invalid)}. Correct the file")
    if unsupported or scheme is None:
        raise UnsupportedModelError(
            f"[{where}] a model must do without: {'; '.join(unsupported)}. Use another checkpoint"
        )
    return QuantizedCheckpoint(checkpoint, scheme)


def _config_beside(checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, str]:
    """The quantisation that old folders describe in a file of its own, where there are tensors of that kind."""
    if not any(name.endswith(".qweight") for name in checkpoint.names()):
        return None, ""
    for name, method in FILES.items():
        path = checkpoint.folder / name
        if os.path.lexists(path):
            return {"quant_method": method, **read_json_object(path, InvalidConfigError)}, name
    return None, ""
