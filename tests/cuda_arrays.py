"""Where CUDA kernels are tested: the emulation on this processor, and a real GPU where there is one."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import weakref
from typing import Any

import numpy as np
import pytest

import pyllm
from pyllm.devices import cuda_driver


def _take_module_from_file() -> None:
    """PYLLM_EMU_MODULE: a file that stands in for pyllm._cuda_emu, one compiled with sanitizers say."""
    path = os.environ.get("PYLLM_EMU_MODULE")
    if path:
        spec = importlib.util.spec_from_file_location("pyllm._cuda_emu", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["pyllm._cuda_emu"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        pyllm._cuda_emu = module  # type: ignore[attr-defined]


_take_module_from_file()


class Device:
    """A module of kernels (pyllm._cuda or pyllm._cuda_emu) and arrays in its memory."""

    def __init__(self, module: Any, xp: Any) -> None:
        self.module, self.xp = module, xp

    @property
    def emulated(self) -> bool:
        return bool(self.module.emulated)

    def to_device(self, array: Any) -> Any:
        """A C-contiguous copy in device memory, on 256 bytes."""
        array = np.ascontiguousarray(array)
        out = self.empty(array.shape, array.dtype)
        if self.emulated:
            out[...] = array
        else:
            out.set(array)
        return out

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Device memory full of bytes of 0xff (NaN, -1), on 256 bytes."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape)) * dtype.itemsize
        if not self.emulated:
            return self.xp.full(count, 0xFF, np.uint8).view(dtype).reshape(shape)
        return _aligned_bytes(count).view(dtype).reshape(shape)

    def to_host(self, array: Any) -> np.ndarray:
        return np.array(array) if self.emulated else self.xp.asnumpy(array)

    def pointer(self, array: Any) -> int:
        """The address, as bindings take it; None: 0."""
        if array is None:
            return 0
        return int(array.ctypes.data if self.emulated else array.data.ptr)


def _aligned_bytes(count: int) -> np.ndarray:
    """Bytes of 0xff on 256 bytes that end where the allocation ends, so that the address sanitizer sees its end."""
    libc = ctypes.CDLL(None)
    libc.free.argtypes = (ctypes.c_void_p,)
    address = ctypes.c_void_p()
    if libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(256), ctypes.c_size_t(max(count, 1))) != 0:
        raise MemoryError(count)
    buffer = (ctypes.c_uint8 * count).from_address(address.value or 0)
    weakref.finalize(buffer, libc.free, address.value)
    array = np.frombuffer(buffer, np.uint8)
    array[:] = 0xFF
    return array


def emulator() -> Device:
    try:
        from pyllm import _cuda_emu
    except ImportError:
        pytest.skip("emulator not built (install with -Ccmake.define.PYLLM_CUDA_EMU=ON)")
    return Device(_cuda_emu, np)


def gpu() -> Device:
    problem = gpu_problem()
    if problem:
        pytest.skip(f"no CUDA device: {problem}")
    return Device(*cuda_driver.load())


@functools.cache
def gpu_problem() -> str | None:
    """Why tests run on no GPU; None: there is one."""
    return "PYLLM_CUDA_EMULATOR is set" if cuda_driver.emulated() else cuda_driver.missing()


# The GPU only where there is one: test_cuda_driver.py says why not, once.
_BACKENDS = ["emulator", *([] if gpu_problem() else [pytest.param("gpu", marks=pytest.mark.gpu)])]


@pytest.fixture(params=_BACKENDS)
def device(request: pytest.FixtureRequest) -> Device:
    """Every device at hand: the emulator, and a GPU. In conftest.py, so tests need not import it."""
    return emulator() if request.param == "emulator" else gpu()


def bf16_of(array: Any) -> np.ndarray:
    """float32 rounded to bfloat16 (nearest, ties to even), as uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FFF), rounded).reshape(np.shape(array))


def float_of_bf16(array: Any) -> np.ndarray:
    """uint16 bit patterns as float32."""
    return (np.asarray(array).astype(np.uint32) << 16).view(np.float32)


def narrow(array: Any, type_name: str) -> np.ndarray:
    """float32 in a kernel's type ("float32", "bfloat16" as uint16, "float16")."""
    array = np.asarray(array, np.float32)
    if type_name == "bfloat16":
        return bf16_of(array)
    return array.astype(np.float16) if type_name == "float16" else array


def widen(array: Any, type_name: str) -> np.ndarray:
    """The inverse of narrow()."""
    return float_of_bf16(array) if type_name == "bfloat16" else np.asarray(array).astype(np.float32)


def rows(array: Any, type_name: str, ld: int | None = None) -> np.ndarray:
    """[R, n] as device rows [R, ld] of a type (ld: a multiple of 64), what lies past n being NaN."""
    array = np.asarray(array, np.float32)
    ld = ld or (array.shape[1] + 63) // 64 * 64
    out = np.full((array.shape[0], ld), np.nan, np.float32)
    out[:, : array.shape[1]] = array
    return narrow(out, type_name)
