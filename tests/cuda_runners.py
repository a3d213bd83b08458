"""What tests of CudaRunner share: runners of recorded programs and of toy checkpoints on the device that is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from cuda_arrays import Device
from recorded_programs import RandomTensors
from test_cpu_programs import NETWORKS

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.cuda import CudaRunner
from pyllm.models import bind, network_of


@pytest.fixture(autouse=True)
def chosen_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """device="cuda" means the one that is tested."""
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1" if device.emulated else "0")
    return device


def recorded_runner(name: str, dtype: str = "float32", **options: Any) -> CudaRunner:
    network = NETWORKS[name]()
    return CudaRunner(network, RandomTensors(network), dtype=dtype, **options)


def toy_runner(name: str, dtype: str = "float32", **options: Any) -> CudaRunner:
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        return CudaRunner(network, bind(network, checkpoint), dtype=dtype, **options)


def on_host(rows: Any) -> np.ndarray:
    return np.array(rows) if isinstance(rows, np.ndarray) else rows.get()
