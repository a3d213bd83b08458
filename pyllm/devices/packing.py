"""Brings a network's weights from their tensors into the executor: matrix by matrix, floats or integers."""

from __future__ import annotations

import sys
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..checkpoint.codes import Codes
from ..program.tensors import Matrix, Source
from .formats import GROUPS, Chosen
from .lowering import Lowering


class Tensors(Protocol):
    """Where the weights come from: pyllm.models.BoundCheckpoint, or anything like it."""

    def tensor(self, name: str) -> NDArray[Any]:
        """float32, float16, or bfloat16 as uint16, in the shape its Source says."""

    def codes(self, name: str) -> Codes | None:
        """The integers of a tensor that is quantised. Where no method `kind` says that one is, this is not asked."""

    def release(self, name: str) -> None:
        """The tensor's memory will not be read again."""


class Packer(Protocol):
    """What packs and keeps weights: _C.Executor, or cuda_packing.DeviceWeights. matrix and id are the core's."""

    def pack(self, matrix: int, parts: list[NDArray[Any]], bias: list[NDArray[np.float32]]) -> None:
        """A matrix from floats [n, k], one array a source, and their biases."""

    def pack_codes(
        self,
        matrix: int,
        parts: list[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint8] | None]],
        bias: list[NDArray[np.float32]],
        group_size: int = 0,
    ) -> None:
        """A matrix from (codes, scales, zero points), one triple a source; group_size inputs share a scale, 0: all."""

    def set_vector(self, id: int, values: NDArray[np.float32]) -> None:
        """A vector."""


def load_weights(executor: Packer, lowered: Lowering, tensors: Tensors, progress: bool) -> None:
    """Packs everything, one matrix at a time, so that at most one tensor is in memory beside the packed weights."""
    uses: dict[str, int] = {}
    for matrix in lowered.matrices:
        for source in (*matrix.sources, *matrix.bias):
            uses[source.name] = uses.get(source.name, 0) + 1
    for source in [*(vector.source for vector in lowered.vectors), *(bias.source for bias in lowered.biases)]:
        uses[source.name] = uses.get(source.name, 0) + 1

    def done(source: Source) -> None:
        uses[source.name] -= 1
        if uses[source.name] == 0:
            tensors.release(source.name)

    hidden = not (progress and sys.stderr.isatty())
    for matrix, index in tqdm(lowered.matrices.items(), desc="packing weights", unit="matrix", disable=hidden):
        biases = [_float32(_taken(tensors, source).ravel()) for source in matrix.bias]
        chosen = lowered.chosen[matrix]
        if chosen.codes:
            parts, group = _codes(tensors, matrix, chosen)
            executor.pack_codes(index, parts, biases, group)
            del parts
        else:
            executor.pack(index, _floats(tensors, matrix), biases)
        for source in (*matrix.sources, *matrix.bias):
            done(source)
    for vector, index in lowered.vectors.items():
        values = _float32(_taken(tensors, vector.source).ravel()) + np.float32(vector.offset)
        executor.set_vector(index, values * np.float32(vector.scale))
        done(vector.source)
    for bias, index in lowered.biases.items():
        executor.set_vector(index, bias.expand(_float32(_taken(tensors, bias.source))).ravel())
        done(bias.source)


def _floats(tensors: Tensors, matrix: Matrix) -> list[NDArray[Any]]:
    """Its parts, of one type. A tensor that several parts come from is read once: it may have to be computed."""
    arrays = {name: tensors.tensor(name) for name in dict.fromkeys(source.name for source in matrix.sources)}
    parts = [_part(arrays[source.name], source) for source in matrix.sources]
    return [_float32(part) for part in parts] if len({part.dtype for part in parts}) > 1 else parts


def _codes(
    tensors: Tensors, matrix: Matrix, chosen: Chosen
) -> tuple[list[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint8] | None]], int]:
    """Its parts as (codes, scales, zeros), and the inputs that share a scale: the format's group, or 0 for all."""
    whole: dict[str, Codes] = {}
    for name in dict.fromkeys(source.name for source in matrix.sources):
        codes = tensors.codes(name)
        assert codes is not None, name
        whole[name] = codes
    group = GROUPS[chosen.format] if any(codes.scales.shape[1] > 1 for codes in whole.values()) else 0
    parts = []
    for source in matrix.sources:
        part = whole[source.name].rows(source.begin, source.end or None)
        part = part.regrouped(group) if group else part
        zeros = part.zeros
        if zeros is None and chosen.format.startswith("int4z"):
            zeros = np.full(part.scales.shape, 8, np.uint8)
        zeros = None if zeros is None else np.ascontiguousarray(zeros)
        parts.append((part.codes, np.ascontiguousarray(part.scales), zeros))
    return parts, group


def _taken(tensors: Tensors, source: Source) -> NDArray[Any]:
    return _part(tensors.tensor(source.name), source)


def _part(array: NDArray[Any], source: Source) -> NDArray[Any]:
    """The part of a tensor that a source takes, as a view; a copy only where the file holds it misaligned."""
    array = (array.T if source.transposed else array)[source.begin : source.end or None]
    return array if array.flags.aligned else array.copy()


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """From float32, float16, or bfloat16 bits in uint16; C-contiguous."""
    if array.dtype == np.uint16:
        return cast("NDArray[np.float32]", (array.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return np.ascontiguousarray(array, dtype=np.float32)
