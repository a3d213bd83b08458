"""Binds a program to a checkpoint: every tensor it needs must be there, in its shape, and nothing else. Reads no data
but to compare a head that is stored twice; converting and packing is the device's matter.

Quantised matrices are [outputs, inputs] in every checkpoint, also where the model has them the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..checkpoint.codes import Codes, Kind
from ..errors import CheckpointError
from ..program.network import Network, as_network
from ..program.program import Attention, Program
from ..program.tensors import Derived, Source

STORED_TYPES = ("F32", "F16", "BF16")
LISTED = 1000  # problems in one message: more than a model mixed up by mistake has, less than a lying one can have


class BoundCheckpoint:
    """A network's tensors under their canonical names, mapped from the files; valid until the checkpoint is closed.

    constants: float32 arrays under names of their own. derived: what is computed from tensors, at every reading.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: dict[str, str],
        constants: Mapping[str, NDArray[np.float32]],
        derived: Mapping[str, Derived],
        turned: Collection[str] = (),
    ) -> None:
        self._checkpoint = checkpoint
        self._names = names  # canonical -> as stored
        self._constants = constants
        self._derived = derived
        self._turned = turned  # quantised [outputs, inputs] for a Source that says [inputs, outputs]

    def names(self) -> list[str]:
        """Canonical names of what the checkpoint holds, in the order the network uses them."""
        return list(self._names)

    def tensor(self, name: str) -> NDArray[Any]:
        """The array as stored, read-only; bfloat16 as uint16. What is quantised comes as float32."""
        if name in self._derived:
            derived = self._derived[name]
            return np.asarray(derived.compute([self._taken(source) for source in derived.inputs]), np.float32)
        if name in self._constants:
            return self._constants[name]
        stored = self._checkpoint.tensor(self._names[name])
        return stored.T if name in self._turned else stored

    def stored_name(self, name: str) -> str:
        """What a tensor is called in the files."""
        return self._names[name]

    def kind(self, name: str) -> Kind | None:
        """How a matrix is quantised in the checkpoint; None: it is not."""
        return self._checkpoint.kind(self._names[name]) if name in self._names else None

    def codes(self, name: str) -> Codes | None:
        """The integers of a quantised matrix, [outputs, inputs] whatever its Source says; None where it has none."""
        return self._checkpoint.codes(self._names[name]) if name in self._names else None

    def dtype(self, name: str) -> str:
        """How it is stored: "F32", "F16" or "BF16"."""
        return self._checkpoint.dtype(self._names[name]) if name in self._names else "F32"

    def release(self, name: str) -> None:
        """Says that the tensor's pages will not be read again."""
        if name in self._names:
            self._checkpoint.release(self._names[name])

    def _taken(self, source: Source) -> NDArray[np.float32]:
        """The rows that a source takes of its tensor, as float32."""
        array = self.tensor(source.name)
        if array.dtype == np.uint16:
            array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        array = array.T if source.transposed else array
        return np.asarray(array[source.begin : source.end or None], np.float32)


def bind_tensors(
    network: Network | Program, checkpoint: Checkpoint, canonical: Callable[[str], str]
) -> BoundCheckpoint:
    """Raises CheckpointError listing the missing, extra, misshapen and unreadable tensors, up to `LISTED` of them."""
    network = as_network(network)
    programs = list(network.programs.values())
    problems: list[str] = []
    stored = _by_canonical_name(checkpoint, canonical, problems)
    for name, alias in dict.fromkeys(pair for program in programs for pair in program.aliases):
        if name not in stored and alias in stored:
            stored[name] = stored[alias]
        elif alias in stored and not _equal(checkpoint, stored[name], stored[alias]):
            problems.append(
                f"{stored[alias]} must equal {stored[name]}, for config.json ties them, but it differs "
                '(untie them by "tie_word_embeddings": false)'
            )
        stored.pop(alias, None)
    for name, other in (pair for program in programs for pair in program.fallbacks):
        if name not in stored and other in stored:
            stored[name] = stored[other]
    sources = [source for program in programs for source in program.sources()]
    constants = {name: array for program in programs for name, array in program.constants.items()}
    derived = {name: each for program in programs for name, each in program.derived.items()}
    for source in sources:
        if source.optional and source.name not in stored:
            constants[source.name] = np.zeros(source.shape, np.float32)
    needed = {source.name: source.shape for source in sources if source.name not in constants}
    quantized = {name for name in needed if name in stored and checkpoint.kind(stored[name]) is not None}
    turned = {source.name for source in sources if source.transposed and source.name in quantized}
    problems += [f"{name} is missing, it must be {list(needed[name])}" for name in needed if name not in stored]
    for name, shape in needed.items():
        if name in stored:
            problems += _problems_of(checkpoint, stored[name], shape[::-1] if name in turned else shape)
    patterns = [f"(?:{pattern})" for program in programs for pattern in program.ignored]
    ignored = re.compile("|".join(patterns) or r"(?!)")
    extra = [stored[name] for name in stored if name not in needed and not ignored.fullmatch(name)]
    extra = [name for name in extra if not checkpoint.is_idle(name)]
    problems += [f"{name} {list(checkpoint.shape(name))} is not part of the model" for name in extra]
    if problems:
        raise CheckpointError(
            f"[checkpoint] the tensors must be those of the {network.family} model that config.json describes "
            f"({_layers(programs)} layers), these are not:\n  "
            + "\n  ".join(problems[:LISTED])
            + (f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else "")
            + "\nCheck that config.json and the weight files belong together"
        )
    return BoundCheckpoint(checkpoint, {name: stored[name] for name in needed}, constants, derived, turned)


def _layers(programs: list[Program]) -> str:
    return " + ".join(str(sum(isinstance(op, Attention) for op in program.ops)) for program in programs)


def _by_canonical_name(checkpoint: Checkpoint, canonical: Callable[[str], str], problems: list[str]) -> dict[str, str]:
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        if canonical(name) in stored:
            problems.append(f"{name} and {stored[canonical(name)]} are the same tensor of the model")
        stored[canonical(name)] = name
    return stored


def _problems_of(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> list[str]:
    found, stored = tuple(checkpoint.shape(name)), checkpoint.dtype(name)
    problems = [] if found == shape else [f"{name} is {list(found)}, it must be {list(shape)}"]
    if stored not in STORED_TYPES:
        problems.append(f"{name} is stored as {stored}, weights must be one of {', '.join(STORED_TYPES)}")
    return problems


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Bitwise."""
    if checkpoint.dtype(one) != checkpoint.dtype(other) or checkpoint.shape(one) != checkpoint.shape(other):
        return False
    a, b = checkpoint.tensor(one), checkpoint.tensor(other)
    rows = max(1, (1 << 22) // max(1, a[:1].nbytes))  # compare in pieces of 4 MB, which bounds what is paged in at once
    return all(np.array_equal(_bits(a[i : i + rows]), _bits(b[i : i + rows])) for i in range(0, len(a), rows))


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(np.uint8)
