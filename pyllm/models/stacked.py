"""Checkpoints that hold the experts of a layer stacked in one tensor, as transformers 5 does in memory, read as those
on the Hub are: a tensor for each projection of each expert."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy.typing as npt

from ..checkpoint import Checkpoint
from ..checkpoint.codes import Codes, Kind

# gate_up_proj is [experts, 2 * ffn, inputs], all gate rows first; down_proj is [experts, outputs, ffn].
STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


class Part(NamedTuple):
    """Rows [begin, end) of one expert in a stacked tensor."""

    name: str
    expert: int
    begin: int
    end: int


class UnstackedCheckpoint(Checkpoint):
    """A checkpoint with `experts.E.gate_proj.weight` and its kin in place of stacked tensors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._whole = checkpoint
        self.folder, self.config = checkpoint.folder, checkpoint.config
        self.generation_config = checkpoint.generation_config
        self._parts: dict[str, Part] = {}
        self._names: list[str] = []
        for name in checkpoint.names():
            found, shape = STACKED.fullmatch(name), checkpoint.shape(name)
            if found is None or len(shape) != 3 or 0 in shape:
                self._names.append(name)
                continue
            rows, half = shape[1], shape[1] // 2
            pieces = {"gate_proj": (0, half), "up_proj": (half, rows)}
            if found[2] == "down_proj":
                pieces = {"down_proj": (0, rows)}
            for expert in range(shape[0]):
                for piece, taken in pieces.items():
                    part = f"{found[1]}.{expert}.{piece}.weight"
                    self._parts[part] = Part(name, expert, *taken)
                    self._names.append(part)

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._parts:
            return self._whole.shape(name)
        part = self._parts[name]
        return (part.end - part.begin, self._whole.shape(part.name)[2])

    def dtype(self, name: str) -> str:
        return self._whole.dtype(self._parts[name].name if name in self._parts else name)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        if name not in self._parts:
            return self._whole.tensor(name)
        part = self._parts[name]
        return self._whole.tensor(part.name)[part.expert, part.begin : part.end]

    def kind(self, name: str) -> Kind | None:
        return None if name in self._parts else self._whole.kind(name)

    def codes(self, name: str) -> Codes | None:
        return None if name in self._parts else self._whole.codes(name)

    def is_idle(self, name: str) -> bool:
        return name not in self._parts and self._whole.is_idle(name)

    def release(self, name: str) -> None:
        self._whole.release(self._parts[name].name if name in self._parts else name)

    def close(self) -> None:
        """Nothing: what it reads belongs to the other one."""
