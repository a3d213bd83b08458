"""Memory of one GPU as arrays of CuPy (NumPy, emulated): made on one stream; typed errors when there is none left."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfMemoryError

ALIGNMENT = 256  # bytes: what kernels expect buffers to begin on, and CuPy gives


class DeviceMemory:
    """What allocates for one runner. module: pyllm._cuda or its emulation; xp: cupy or numpy, with it."""

    def __init__(self, module: Any, xp: Any, index: int) -> None:
        self._module, self._xp, self._index = module, xp, index
        # Not the default stream: its work could not be captured. Not blocking: it does not wait for others' work.
        self._stream = None if module.emulated else self._made_stream()

    @property
    def stream(self) -> int:
        """Address of the stream that the runner's work goes to; emulated: some number."""
        return 1 if self._stream is None else int(self._stream.ptr)

    def current_stream(self) -> int:
        """Of this thread's CuPy: where results are used."""
        return 0 if self._stream is None else int(self._xp.cuda.get_current_stream(self._index).ptr)

    def bytes(self, what: str, count: int) -> Any:
        """uint8 [count], not initialised, on 256 bytes. Raises OutOfMemoryError, which names `what`."""
        try:
            return self._empty(count)
        except MemoryError:
            self._release_unused()
        try:
            return self._empty(count)
        except MemoryError as error:
            free = self._module.device_info(self._index)["free_memory"]
            raise OutOfMemoryError(
                f"[{what}] {count / 1e6:.1f} MB of GPU memory were refused ({free / 1e6:.1f} MB free); free memory, or "
                "use a smaller model, batch, context or dtype, quantization= or kv_cache='int8'"
            ) from error

    def floats(self, what: str, count: int) -> Any:
        """float32 [count], not initialised."""
        return self.bytes(what, 4 * count).view(np.float32)

    def upload(self, what: str, array: NDArray[Any]) -> Any:
        """A copy of a NumPy array on the device."""
        held = self.bytes(what, max(array.nbytes, 1))
        if array.nbytes:
            self.send(held, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return held

    def send(self, held: Any, flat: NDArray[np.uint8]) -> None:
        """Copies bytes of the host to as many of the device. Pinned ones stay what they are until synchronise()."""
        if self._stream is None:
            held[:] = flat
        else:
            with self._here():
                held.set(flat, self._stream)

    def fetch(self, held: Any, flat: NDArray[np.uint8]) -> None:
        """Copies bytes of the device to as many of the host, which are there after synchronise()."""
        if self._stream is None:
            flat[:] = held
        else:
            with self._here():
                held.get(stream=self._stream, out=flat)

    def synchronise(self) -> None:
        """Waits until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def pinned(self, count: int) -> NDArray[np.uint8]:
        """uint8 [count] of the host, not initialised, that copies reach without a detour; where the system refuses
        that, memory like any other."""
        if self._stream is None:
            return np.empty(count, np.uint8)
        cuda = self._xp.cuda
        try:
            with self._here():  # not of CuPy's pool, which would keep it
                memory = cuda.PinnedMemoryPointer(cuda.PinnedMemory(count), 0)
        except cuda.runtime.CUDARuntimeError:
            return np.empty(count, np.uint8)
        return np.frombuffer(memory, np.uint8, count)

    def address(self, array: Any) -> int:
        """Of an array's first element."""
        return int(array.ctypes.data) if self._stream is None else int(array.data.ptr)

    def _empty(self, count: int) -> Any:
        if self._stream is None:
            whole = np.full(count + ALIGNMENT, 0xFF, np.uint8)  # NaNs: what is read before it is written shows
            return whole[-whole.ctypes.data % ALIGNMENT :][:count]
        with self._here(), self._stream:
            return self._xp.empty(count, np.uint8)

    def _made_stream(self) -> Any:
        with self._here():
            return self._xp.cuda.Stream(non_blocking=True)

    def _release_unused(self) -> None:
        """Gives back what CuPy's pool keeps for later."""
        if self._stream is not None:
            with self._here():
                self._xp.get_default_memory_pool().free_all_blocks()

    def _here(self) -> AbstractContextManager[Any]:
        """What is done within is done on this GPU."""
        here: AbstractContextManager[Any] = self._xp.cuda.Device(self._index)
        return here


class Kept:
    """Arrays held for the core, which knows their addresses only. They live as long as this object."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._arrays: list[Any] = []
        self._named: dict[str, Any] = {}

    def add(self, count: int) -> int:
        """The address of `count` more bytes of keys and values. Raises OutOfMemoryError."""
        self._arrays.append(self._memory.bytes("key/value cache", count))
        return self._memory.address(self._arrays[-1])

    def replace(self, what: str, count: int) -> int:
        """The address of `count` bytes instead of those given for the same before. Raises OutOfMemoryError."""
        self.drop(what)  # first: there may not be room for both
        self._named[what] = self._memory.bytes(what, count)
        return self._memory.address(self._named[what])

    def drop(self, what: str) -> None:
        self._named.pop(what, None)
