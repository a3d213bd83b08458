"""What runners of compiled devices share: a lowered network behind an executor, its programs, caches and requests."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArrayError
from ..program.batch import Batch, Capture
from ..program.listing import op_name
from ..program.network import Network
from ..program.program import Program
from .lowering import Lowering, Routine, wanted_buffers, warn_inexact

Cache = TypeVar("Cache")
Ints = NDArray[np.int32]


class Timing(NamedTuple):
    """One operation's part of the steps that were profiled: on the clock of the thread that called, or of the GPU."""

    op: str  # its name in the program's listing
    calls: int
    seconds: float  # at work
    bytes: int  # of weights, keys and values that all threads together had to read
    waited: float  # seconds until the other threads were done with it; on a GPU 0
    program: str


class CompiledRunner:
    """A network lowered for one kind of device. name: "cpu", "cuda".

    kv_cache, quantization   what keys and values, and most weights, are kept in
    formats                  weights in each format, those that the most weights have first
    """

    _executor: Any  # set by the device's runner

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

    def profile(self, enable: bool) -> None:
        """Times every operation of the steps from now on, from zero; or stops. Off, it costs nothing; on, about 0.1 us
        an operation. A GPU is then told every operation one by one, no graph and no overlap of two, and each step is
        waited for: an operation takes at least what telling it takes, some microseconds."""
        self._executor.profile(enable)

    def timings(self) -> list[Timing]:
        """Where the time went since profile(True): an entry for each operation that ran, in their order, with what
        comes before ("set-up": the checks of the batch, or its way to the GPU) and, on the CPU, the wait for the last
        thread after them ("finish")."""
        found = []
        for (name, program), records in zip(self.network.programs.items(), self._executor.timings(), strict=False):
            *ops, setup, finish = records
            labels = [op_name(op) for op in program.ops]
            for label, record in zip(["set-up", *labels, "finish"], [setup, *ops, finish], strict=True):
                calls, seconds, waited, read = record
                if calls:
                    found.append(Timing(label, calls, seconds, int(read), waited, name))
        return found

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
