"""The check of what compiled CUDA kernels use, on what ptxas says of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


def said_of(
    name: str, architecture: str, *, stack: int = 0, spill: int = 0, registers: int = 40, shared: int = 0
) -> str:
    """The lines of one kernel."""
    return (
        f"ptxas info    : Compiling entry function '{name}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 472 bytes cmem[0]\n"
    )


def check(tmp_path: Path, log: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "build.log"
    path.write_text("[1/2] Building CUDA object x.cu.o\n" + log)
    command = [sys.executable, str(REPOSITORY / "cmake" / "check_cuda_resources.py"), str(path), "sm_80", "sm_90"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_kernels_within_their_budget_pass(tmp_path: Path) -> None:
    log = said_of("a", "sm_80") + said_of("a", "sm_90") + said_of("wgmma", "sm_90a")
    result = check(tmp_path, log + said_of("norm_kernel", "sm_80", registers=100) + said_of("norm_kernel", "sm_90"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 compiled kernels, 0 problems, at most 100 registers" in result.stdout


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (said_of("a", "sm_80", spill=4) + said_of("a", "sm_90"), "sm_80 a: spills 4 bytes of stores and 4 of loads"),
        (said_of("a", "sm_80") + said_of("a", "sm_90", stack=64), "sm_90 a: stack frame of 64 bytes, 0 allowed"),
        (said_of("a", "sm_80", registers=65) + said_of("a", "sm_90"), "65 registers without __launch_bounds__"),
        (said_of("a", "sm_80", shared=50000) + said_of("a", "sm_90"), "50000 bytes of static shared memory"),
        (said_of("a", "sm_80"), "a: not compiled for sm_90"),
        ("", "tells of no kernel"),
    ],
)
def test_what_exceeds_it_is_told(tmp_path: Path, log: str, problem: str) -> None:
    result = check(tmp_path, log)
    assert result.returncode == 1, result.stderr
    assert problem in result.stdout
