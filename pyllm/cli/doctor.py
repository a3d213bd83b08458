"""`pyllm doctor`: what this machine offers and what pyllm would use of it. Works without the compiled modules."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click

import pyllm
from pyllm.devices import cuda_driver

DEPENDENCIES = ("numpy", "tokenizers", "sentencepiece", "huggingface_hub", "jinja2", "click", "tqdm")
VARIABLES = (
    "PYLLM_ISA",
    "PYLLM_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYLLM_CUDA_EMULATOR",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show instruction sets, cores, memory, CUDA and versions, and what would be used. Exits with 1 when pyllm can't
    run here."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for section, values in report.items():
            click.echo(f"{section}")
            width = max(map(len, values))
            for name, value in values.items():
                click.echo(f"  {name:<{width}}  {_plain(value)}")
    if report["kernels"].get("problem"):
        raise SystemExit(1)


def examine() -> dict[str, dict[str, Any]]:
    """Everything `pyllm doctor` prints: section -> name -> value (None: unknown here)."""
    return {
        "pyllm": {
            "version": pyllm.__version__,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "processor": _processor(),
        "kernels": _kernels(),
        "memory": _memory(),
        "cuda": _cuda(),
        "versions": {name: _version(name) for name in DEPENDENCIES},
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _processor() -> dict[str, Any]:
    info = _read("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "model": models[0] if models else platform.processor() or None,
        "logical processors": os.cpu_count(),
        "this process may use": allowed,
    }
    core = _core()
    if core is not None:
        machine = core.processors()
        found |= {"physical cores among those": machine["cores"], "cgroup quota": machine["quota"] or None}
    return found


def _kernels() -> dict[str, Any]:
    core = _core()
    if core is None:
        return {"problem": "the compiled modules are missing for this Python; reinstall, or run `pip install -e .`"}
    found: dict[str, Any] = {"instruction sets here": core.isas()}
    try:
        found |= {"used": core.isa(), "threads": core.default_threads()}
    except pyllm.errors.PyllmError as error:  # a malformed PYLLM_ISA or PYLLM_NUM_THREADS
        found["problem"] = str(error)
    return found


def _memory() -> dict[str, Any]:
    lines = (line.partition(":") for line in _read("/proc/meminfo").splitlines())
    kilobytes = {name: int(value.split()[0]) for name, _, value in lines if value}
    huge = _read("/sys/kernel/mm/transparent_hugepage/enabled").strip()
    chosen = huge.partition("[")[2].partition("]")[0]
    return {
        "total GiB": _gib(kilobytes.get("MemTotal")),
        "available GiB": _gib(kilobytes.get("MemAvailable")),
        "transparent huge pages": chosen or None,
        "huge pages in use GiB": _gib(kilobytes.get("AnonHugePages")),
    }


def _cuda() -> dict[str, Any]:
    driver = _read("/proc/driver/nvidia/version").splitlines()
    return {
        "driver": driver[0].partition(":")[2].strip() if driver else None,
        "devices": sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")),
        "kernels in this build": importlib.util.find_spec("pyllm._cuda") is not None,
        "CuPy": _version("cupy-cuda13x") or _version("cupy"),
        "cuBLASLt": cuda_driver.cublaslt_path(),
        "device='cuda'": cuda_driver.missing() or _gpu(),
    }


def _gpu() -> str:
    """What device='cuda' runs on."""
    info = cuda_driver.load()[0].device_info()
    major, minor = info["compute_capability"]
    free, total = info["free_memory"] / 2**30, info["total_memory"] / 2**30
    return f"{info['name']}, compute capability {major}.{minor}, {free:.1f} of {total:.1f} GiB free"


def _core() -> Any:
    """The compiled core, or None where it can't be imported."""
    try:
        from pyllm import _C
    except ImportError:
        return None
    return _C


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _gib(kilobytes: int | None) -> float | None:
    return None if kilobytes is None else round(kilobytes / 2**20, 2)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
