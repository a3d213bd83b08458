"""What device="cuda" needs, looked for without touching it: the compiled kernels, a GPU with its driver, CuPy, cuBLAS.

Nothing here runs at `import pyllm`, and nothing of CuPy is called before it says that it is available.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import DeviceError

# Versions of cuBLAS whose cublasLtMatmul takes what is built against 13's header, best first.
CUBLAS_VERSIONS = ("13", "12")
_BUILD = "install the CUDA toolkit and type `PYLLM_CUDA=ON pip install --no-binary pyllm --force-reinstall pyllm`"


def emulated() -> bool:
    """Whether "cuda" means the kernels compiled for the CPU, over NumPy: for tests (PYLLM_CUDA_EMULATOR=1)."""
    return os.environ.get("PYLLM_CUDA_EMULATOR", "0") not in ("", "0")


def missing() -> str | None:
    """What device="cuda" lacks here and what to type, or None when it can be used."""
    if emulated():
        if _module("pyllm._cuda_emu") is None:
            return "the emulated kernels are not built; install with -Ccmake.define.PYLLM_CUDA_EMU=ON"
        return None
    module = _module("pyllm._cuda")
    if module is None:
        return f"this build of pyllm has no CUDA kernels; {_BUILD}"
    if isinstance(module, ImportError):
        return f"the CUDA kernels can't be loaded ({module}); {_BUILD}"
    problem = module.unavailable()
    if problem:
        return f"no NVIDIA GPU can be used ({problem}); install the NVIDIA driver, 580 or later (nvidia-smi tells)"
    return _missing_cupy()


def load(device_index: int = 0) -> tuple[Any, Any]:
    """(compiled module, array namespace) of the device: (pyllm._cuda, cupy), or (pyllm._cuda_emu, numpy).

    Raises DeviceError when something is missing or there is no such device.
    """
    problem = missing()
    if problem:
        raise DeviceError(
            f"[load] device 'cuda' needs a GPU, its driver, CUDA kernels and CuPy, and {problem}; or use device='cpu'"
        )
    module = _module("pyllm._cuda_emu" if emulated() else "pyllm._cuda")
    count = module.device_count()
    if not 0 <= device_index < count:
        names = ", ".join(f"'cuda:{i}'" for i in range(count))
        raise DeviceError(f"[load] the device must be one of {names}, got 'cuda:{device_index}'; choose one of those")
    return module, _imported("numpy" if emulated() else "cupy")


@functools.cache
def cublaslt_path() -> str | None:
    """A name by which libcublasLt can be opened: of NVIDIA's wheels, of a toolkit, or the system's. None: it is not
    here, and large matrices are multiplied by pyllm's own kernels."""
    for version in CUBLAS_VERSIONS:
        name = f"libcublasLt.so.{version}"
        folders = [*_wheel_folders(version), *_toolkit_folders()]
        found = next((path for path in (Path(folder) / name for folder in folders) if path.is_file()), None)
        if found is not None:
            return str(found)
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return _pathfinder()


def _missing_cupy() -> str | None:
    """Of CuPy alone."""
    if not _is_installed("cupy"):
        return 'CuPy is not installed; type `pip install "pyllm[cuda13]"`'
    try:
        available = _imported("cupy").cuda.is_available()
    except Exception as error:  # its own libraries may fail in any way
        return f'CuPy can\'t be used ({error}); type `pip install --force-reinstall "pyllm[cuda13]"`'
    return None if available else 'CuPy sees no GPU; type `pip install --force-reinstall "pyllm[cuda13]"`'


@functools.cache
def _module(name: str) -> Any:
    """The compiled module; None where it was not built; the ImportError where it can't be loaded."""
    if not _is_installed(name):
        return None
    try:
        return _imported(name)
    except ImportError as error:
        return error


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _imported(name: str) -> Any:
    return importlib.import_module(name)


def _wheel_folders(version: str) -> list[str]:
    """lib folders of the nvidia-cublas wheels."""
    names = (f"nvidia/cu{version}/lib", "nvidia/cublas/lib")
    return [folder for each in sys.path for name in names for folder in glob.glob(os.path.join(each or ".", name))]


def _toolkit_folders() -> list[str]:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [os.path.join(root, folder) for root in roots if root for folder in ("lib64", "lib")]


def _pathfinder() -> str | None:
    """By NVIDIA's own search (CuPy brings it), which knows conda's and other layouts."""
    try:
        found = _imported("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt").abs_path
    except Exception:  # not installed, or not found
        return None
    return None if found is None else str(found)
