"""The compiled CUDA kernels that are at hand, for tests: emulated on the CPU (pyllm._cuda_emu over NumPy arrays) and on
a GPU (pyllm._cuda over CuPy's)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

EMULATOR, GPU = "emulator", "gpu"


class Device:
    """`module` holds the kernels, `xp` makes device memory. bfloat16 travels as uint16."""

    def __init__(self, name: str, module: Any, xp: Any) -> None:
        self.name, self.module, self.xp = name, module, xp

    def to_device(self, array: Any) -> Any:
        return self.xp.asarray(np.ascontiguousarray(array)).copy()

    def to_host(self, array: Any) -> np.ndarray:
        return np.array(array) if self.xp is np else self.xp.asnumpy(array)

    def pointer(self, array: Any) -> int:
        return int(array.ctypes.data if self.xp is np else array.data.ptr)


@pytest.fixture(params=[EMULATOR, GPU])
def device(request: pytest.FixtureRequest) -> Device:
    name = "_cuda_emu" if request.param == EMULATOR else "_cuda"
    try:
        module = importlib.import_module(f"pyllm.{name}")
        xp = np if request.param == EMULATOR else importlib.import_module("cupy")
        if xp is not np:
            xp.zeros(1)
    except Exception as error:  # an extension that was not built, no CuPy, no driver
        pytest.skip(f"no kernels for {request.param}: {error}")
    return Device(request.param, module, xp)
