"""What runners of compiled devices share: a lowered network behind an executor, its programs, caches and requests."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArrayError
from ..program.batch import Batch, Capture
from ..program.network import Network
from ..program.program import Program
from .lowering import Lowering, Routine, wanted_buffers, warn_inexact

Cache = TypeVar("Cache")
Ints = NDArray[np.int32]


class CompiledRunner:
    """A network lowered for one kind of device. name: "cpu", "cuda".

    kv_cache, quantization   what keys and values, and most weights, are kept in
    formats                  weights in each format, those that the most weights have first
    """

    def __init__(self, name: str, network: Network, lowered: Lowering) -> None:
        """Warns of matrices that no packed format holds as they are."""
        warn_inexact(lowered, stacklevel=6)
        self.network = network
        self.kv_cache, self.quantization, self.formats = lowered.kv_cache, lowered.quantization, lowered.formats
        self._name = name
        self._routines = lowered.routines
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def program(self) -> Program:
        """The network's main program."""
        return self.network.main

    @property
    def vocab_size(self) -> int:
        return self.program.vocab_size

    @property
    def max_positions(self) -> int:
        return self.program.max_positions

    def _routine(self, program: str) -> Routine:
        """Raises ArrayError when there is no such program."""
        if program not in self._routines:
            have = " and ".join(repr(name) for name in self._routines)
            raise ArrayError(
                f"[{self._name}] a {self.network.family} model has {have}, got {program!r}; name one of its programs"
            )
        return self._routines[program]

    def _noted(self, cache: Cache) -> Cache:
        """Counted in memory reports for as long as it lives."""
        self._caches.add(cache)
        return cache


def inputs(batch: Batch) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """What every executor's run() takes of a batch first."""
    return batch.ids, batch.positions, batch.starts, batch.context, batch.block_table, batch.logit_rows


def checked_caches(kind: type[Cache], cache: object, cross: object | None) -> tuple[Cache, Cache | None]:
    """Both as what they are. Raises ArrayError for caches that are not of a device's kind."""
    if not isinstance(cache, kind) or not (cross is None or isinstance(cross, kind)):
        given = " and ".join(type(one).__name__ for one in (cache, cross) if one is not None)
        raise ArrayError(
            f"[run] the cache must come from this runner's new_cache() or new_cross_cache(), got {given}; make one"
        )
    return cache, cross


class Wanted:
    """Ids of what a capture asks for. Raises ArrayError for names that the program lacks."""

    def __init__(self, routine: Routine, capture: Capture | None) -> None:
        self._capture = capture
        self._buffers = wanted_buffers(routine, capture.buffers if capture else ())
        self._attentions = wanted_buffers(routine, capture.attentions if capture else ())

    @property
    def ids(self) -> tuple[list[int], list[int]]:
        """Of buffers, and of attentions."""
        return list(self._buffers.values()), list(self._attentions.values())

    def give(self, values: Iterable[Any], weights: Iterable[Any]) -> None:
        """Hands out what the executor found, in the order of `ids`."""
        if self._capture is not None:
            self._capture.values = dict(zip(self._buffers, values, strict=True))
            self._capture.weights = dict(zip(self._attentions, weights, strict=True))
