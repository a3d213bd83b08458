"""Output rows in the memory of a GPU: tokens and continuations are chosen there and only these come to the host."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from ..program.batch import CHOICE, CUT, Best, Edit


class Memory(Protocol):
    """Arrays of one GPU (CuPy's; NumPy's, emulated)."""

    def bytes(self, what: str, count: int) -> Any:
        """uint8 [count], not initialised. Raises OutOfMemoryError, which names `what`."""

    def address(self, array: Any) -> int: ...

    def current_stream(self) -> int:
        """What this thread enqueues is in the order of this stream; 0: the default one."""


class Chooser:
    """Chooses from rows of one runner's output. Threads take turns.

    module, xp: pyllm._cuda and cupy, or its emulation and numpy; index: the GPU.
    """

    def __init__(self, module: Any, xp: Any, memory: Memory, index: int = 0) -> None:
        if module.choice_dtype() != CHOICE:
            raise DeviceError("[cuda] the compiled kernels belong to another version of pyllm; build it again")
        self.module = module
        self.memory = memory
        self._xp, self._index = xp, index
        self._lock = threading.Lock()
        self._buffers: dict[str, Any] = {}
        self._sent: dict[str, bytes] = {}  # what the buffers hold

    def rows(self, output: Any) -> CudaRows:
        """DeviceRows of a runner's output, float32 [R, n]. It is valid as long as the output is."""
        return CudaRows(self, output)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """One thread at a time, with the GPU as the current one; gives the stream."""
        here: AbstractContextManager[Any] = nullcontext() if self.module.emulated else self._xp.cuda.Device(self._index)
        with self._lock, here:
            yield self.memory.current_stream()

    def buffer(self, what: str, count: int) -> Any:
        """At least `count` bytes, kept from call to call."""
        held = self._buffers.get(what)
        if held is None or held.nbytes < count:
            self._buffers.pop(what, None)
            self._sent.pop(what, None)
            held = self._buffers[what] = self.memory.bytes("choices", count + min(count, 1 << 20))
        return held

    def upload(self, what: str, array: NDArray[Any]) -> int:
        """The address of a copy; nothing is copied that is there already, as in a steady decode."""
        content = array.tobytes()
        held = self.buffer(what, array.nbytes)
        if content != self._sent.get(what):
            self._sent.pop(what, None)
            flat = np.frombuffer(content, np.uint8)
            if self.module.emulated:
                held[: len(flat)] = flat
            else:  # in order with the kernels
                held[: len(flat)].set(flat, stream=self._xp.cuda.get_current_stream())
            self._sent[what] = content
        return self.memory.address(held)


class CudaRows:
    """See program.batch.DeviceRows."""

    def __init__(self, chooser: Chooser, array: Any) -> None:
        self._chooser = chooser
        self._array = array

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._array.shape
        return rows, columns

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: slice) -> CudaRows:
        return CudaRows(self._chooser, self._array[rows])

    def host(self) -> NDArray[np.float32]:
        rows, columns = self.shape
        if not self._is_aligned or self._array.strides[0] == 4 * columns or rows == 0:
            return _to_host(self._array)
        chooser = self._chooser  # CuPy would compile a kernel to bring rows side by side
        with chooser.turn() as stream:
            held = chooser.buffer("rows", 4 * rows * columns)
            chooser.module.widen(self._view(), rows, columns, chooser.memory.address(held), stream=stream)
            return _to_host(held[: 4 * rows * columns]).view(np.float32).reshape(rows, columns)

    @property
    def can_choose(self) -> bool:
        return self._is_aligned and 1 <= self._array.shape[1] <= self._chooser.module.MOST_CHOICES

    def can_rank(self, count: int) -> bool:
        return self.can_choose and 1 <= count <= self._chooser.module.MOST_BEST

    def penalise(self, rows: list[int], histories: list[list[int]], penalties: list[float]) -> None:
        count, chooser = len(self), self._chooser
        order = np.argsort(rows).tolist()
        lengths, values = np.zeros(count, np.int32), np.ones(count, np.float32)
        lengths[rows] = [len(history) for history in histories]
        values[rows] = penalties
        offsets = np.cumsum(lengths, dtype=np.int32) - lengths
        tokens = [np.array(histories[i], np.int32) for i in order]
        parts = np.concatenate([offsets, lengths, values.view(np.int32), *tokens])  # one copy to the device
        with chooser.turn() as stream:
            first = chooser.upload("penalties", parts)
            starts, sizes, factors, ids = (first + 4 * count * i for i in range(4))
            chooser.module.penalise(self._view(), count, self.shape[1], ids, starts, sizes, factors, stream=stream)

    def edit(self, rows: list[int], edits: Sequence[Edit]) -> None:
        count, columns, chooser = len(self), self.shape[1], self._chooser
        entries = np.zeros((3, count), np.int32)  # offsets, lengths, fills
        known: dict[tuple[Any, ...], tuple[int, int]] = {}  # most rows have the same
        ids: list[int] = []
        values: list[float] = []
        for row, one in zip(rows, edits, strict=True):
            key = one.only, tuple(one.added.items()), tuple(one.ruled_out)
            if key not in known:
                own = _entries(one, columns)
                known[key] = len(ids), len(own[0])
                ids += own[0]
                values += own[1]
            entries[:, row] = *known[key], one.only is not None
        of_ids = np.array(ids, np.int32), np.array(values, np.float32).view(np.int32)
        parts = np.concatenate([entries.reshape(-1), *of_ids])
        with chooser.turn() as stream:
            first = chooser.upload("edits", parts)
            starts, sizes, fills, at = (first + 4 * count * i for i in range(4))
            where = at, at + 4 * len(ids), starts, sizes, fills
            chooser.module.edit(self._view(), count, columns, *where, any_fills=bool(entries[2].any()), stream=stream)

    def log_softmax(self, rows: list[int], marks: Sequence[bool]) -> None:
        count, columns, chooser = len(self), self.shape[1], self._chooser
        wanted = np.zeros(count, np.int32)
        wanted[rows] = [1 if each else 2 for each in marks]
        with chooser.turn() as stream:
            workspace = chooser.buffer("workspace", chooser.module.log_softmax_workspace(count, columns))
            at = chooser.upload("wanted", wanted), chooser.memory.address(workspace)
            chooser.module.log_softmax(self._view(), count, columns, *at, stream=stream)

    def choose(self, choices: NDArray[Any], cuts: int = CUT) -> NDArray[np.int32]:
        count, columns, chooser = len(choices), self.shape[1], self._chooser
        if count == 0:
            return np.zeros(0, np.int32)
        with chooser.turn() as stream:
            tokens = chooser.buffer("tokens", 4 * count)
            workspace = chooser.buffer("workspace", chooser.module.choose_workspace(count, columns))
            at = chooser.upload("choices", choices), *(chooser.memory.address(array) for array in (tokens, workspace))
            chooser.module.choose(self._view(count), count, columns, *at, cuts=cuts, stream=stream)
            return _to_host(tokens[: 4 * count]).view(np.int32)

    def best(self, count: int, normalised: bool) -> Best:
        rows, columns, chooser = len(self), self.shape[1], self._chooser
        size = 4 * rows * count
        with chooser.turn() as stream:
            held = chooser.buffer("best", 2 * size + 4 * rows)
            workspace = chooser.buffer("workspace", chooser.module.top_workspace(rows, columns, count))
            first = chooser.memory.address(held)
            at = first, first + size, first + 2 * size, chooser.memory.address(workspace)
            chooser.module.top(self._view(), rows, columns, count, normalised, *at, stream=stream)
            found = _to_host(held[: 2 * size + 4 * rows])
        values, ids = found[:size].view(np.float32), found[size : 2 * size].view(np.int32)
        return Best(values.reshape(rows, count), ids.reshape(rows, count), found[2 * size :].view(np.float32))

    @property
    def _is_aligned(self) -> bool:
        """Kernels read whole pieces of 16 bytes: rows begin on such and have room for them."""
        columns, ld = self._array.shape[1], self._array.strides[0] // 4
        return bool(ld % 4 == 0 and ld >= columns and self._address % 16 == 0 and self._array.dtype == np.float32)

    @property
    def _address(self) -> int:
        return self._chooser.memory.address(self._array)

    def _view(self, count: int = 0) -> tuple[int, int, str]:
        """What kernels take; one row may stand for `count`."""
        ld = self._array.strides[0] // 4
        return self._address, 0 if len(self) == 1 and count > 1 else ld, "float32"


def _entries(edit: Edit, columns: int) -> tuple[list[int], list[float]]:
    """What cuda/launch.h, Edits, takes of one row."""
    ruled_out = [~token for token in edit.ruled_out if token < columns]
    left = [~token for token in edit.only or () if ~token not in ruled_out]
    ids = [*edit.added, *left, *ruled_out]
    return ids, [*edit.added.values(), *[0.0] * len(left), *[-np.inf] * len(ruled_out)]


def _to_host(array: Any) -> NDArray[Any]:
    """A copy, when all that is enqueued before is done."""
    copy: NDArray[Any] = np.array(array) if isinstance(array, np.ndarray) else array.get()
    return np.ascontiguousarray(copy)
