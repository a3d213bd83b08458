"""What is said where device="cuda" lacks something, and the face of the compiled modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device, emulator, gpu

import pyllm
from pyllm.devices import cuda_driver
from pyllm.errors import DeviceError

GPU = SimpleNamespace(unavailable=lambda: "", device_count=lambda: 2)


@pytest.fixture(autouse=True)
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No emulator unless a test asks for it."""
    monkeypatch.delenv("PYLLM_CUDA_EMULATOR", raising=False)


def pretend(monkeypatch: pytest.MonkeyPatch, module: Any, cupy: Any = None) -> None:
    """What _cuda and CuPy are found to be: the module, None (not there), or an error."""

    def imported(name: str) -> Any:
        if isinstance(cupy, Exception):
            raise cupy
        return cupy

    monkeypatch.setattr(cuda_driver, "_module", lambda name: module)
    monkeypatch.setattr(cuda_driver, "_is_installed", lambda name: cupy is not None)
    monkeypatch.setattr(cuda_driver, "_imported", imported)


def cupy_that_sees(gpu: bool) -> Any:
    return SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: gpu))


@pytest.mark.parametrize(
    ("module", "cupy", "said", "typed"),
    [
        (None, None, "no CUDA kernels", "PYLLM_CUDA=ON pip install"),
        (ImportError("libx.so"), None, "can't be loaded (libx.so)", "PYLLM_CUDA=ON pip install"),
        (SimpleNamespace(unavailable=lambda: "no device"), None, "no NVIDIA GPU can be used (no device)", "nvidia-smi"),
        (GPU, None, "CuPy is not installed", 'pip install "pyllm[cuda13]"'),
        (GPU, RuntimeError("libcurand"), "CuPy can't be used (libcurand)", 'pip install --force-reinstall "pyllm[cu'),
        (GPU, cupy_that_sees(False), "CuPy sees no GPU", 'pip install --force-reinstall "pyllm[cuda13]"'),
    ],
)
def test_missing_parts_are_named_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, module: Any, cupy: Any, said: str, typed: str
) -> None:
    pretend(monkeypatch, module, cupy)
    with pytest.raises(DeviceError) as caught:
        pyllm.load(pyllm.default_model(), device="cuda")
    assert said in str(caught.value)
    assert typed in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_is_the_processor_where_cuda_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "missing", lambda: "nothing is here")
    assert pyllm.load(pyllm.default_model(), device="auto").device == "cpu"


def test_auto_is_never_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator()
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
    assert cuda_driver.missing() is None
    assert pyllm.load(pyllm.default_model(), device="auto").device == "cpu"


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = cupy_that_sees(True)
    pretend(monkeypatch, GPU, cupy)
    assert cuda_driver.load(1) == (GPU, cupy)
    with pytest.raises(DeviceError, match=r"one of 'cuda:0', 'cuda:1', got 'cuda:2'"):
        cuda_driver.load(2)


def test_emulator_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    module = emulator().module
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
    assert cuda_driver.load(0) == (module, np)
    with pytest.raises(DeviceError, match="cuda:1"):
        cuda_driver.load(1)


def test_import_touches_no_gpu_library() -> None:
    code = "import sys, pyllm; print(*(m for m in sys.modules if m.split('.')[0] in ('cupy', 'cuda') or '._cuda' in m))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_cublaslt_of_the_wheels_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    cuda_driver.cublaslt_path.cache_clear()
    try:
        assert cuda_driver.cublaslt_path() == str(library)
    finally:
        cuda_driver.cublaslt_path.cache_clear()


@pytest.mark.gpu
def test_tests_run_on_a_gpu() -> None:
    assert not gpu().emulated


def test_device_info(device: Device) -> None:
    info = device.module.device_info(0)
    assert info["multiprocessors"] > 0
    assert 48 * 1024 < info["shared_memory"] <= 256 * 1024
    assert 0 < info["free_memory"] <= info["total_memory"]
    assert device.module.available()
    assert device.module.unavailable() == ""
    with pytest.raises(DeviceError, match="device"):
        device.module.device_info(99)


def test_programs_of_the_core_are_taken(device: Device) -> None:
    from pyllm import _C

    program = _C.Program(kv_cache="float32", cross_layers=0, cross_kv_heads=0, cross_head_dim=0)
    assert device.module.count_ops(program) == 0
