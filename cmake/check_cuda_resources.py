"""Fails when a CUDA kernel exceeds its budget: spills, a stack frame, too much static shared memory, or registers.

Reads what `ptxas -v` said while the kernels were compiled from scratch (PYLLM_WERROR=ON makes nvcc ask for it).
Usage: check_cuda_resources.py LOG [ARCHITECTURE...]      each kernel must be there for every architecture: sm_80 sm_90
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

UNBOUNDED_REGISTERS = 64  # 65536 of a processor by 1024 threads; with __launch_bounds__ ptxas keeps to a limit itself
MOST_STATIC_SHARED = 48 * 1024


@dataclass
class Kernel:
    name: str
    architecture: str
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    registers: int = 0
    shared: int = 0

    def problems(self, bounded: set[str]) -> list[str]:
        found = []
        if self.spill_stores or self.spill_loads:
            found.append(f"spills {self.spill_stores} bytes of stores and {self.spill_loads} of loads")
        elif self.stack > 0:
            found.append(f"stack frame of {self.stack} bytes, 0 allowed")
        if self.registers > UNBOUNDED_REGISTERS and not bounded & set(re.findall(r"\w+", self.name)):
            found.append(f"{self.registers} registers without __launch_bounds__, {UNBOUNDED_REGISTERS} allowed")
        if self.shared > MOST_STATIC_SHARED:
            found.append(f"{self.shared} bytes of static shared memory, {MOST_STATIC_SHARED} allowed")
        return found


def bounded_kernels() -> set[str]:
    """Names of kernels with __launch_bounds__ in the sources."""
    folder = Path(__file__).resolve().parent.parent / "cuda"
    text = "".join(path.read_text() for path in sorted(folder.rglob("*.cu*")))
    inside = r"[^()]*"
    for _ in range(4):  # as deep as parentheses may nest
        inside = rf"(?:[^()]|\({inside}\))*"
    return set(re.findall(rf"__global__\s+void\s+__launch_bounds__\({inside}\)\s*(\w+)", text))


def kernels_of(log: str) -> list[Kernel]:
    """In the order of the log. Properties of functions that kernels call count for the kernel before them."""
    found: list[Kernel] = []
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(.*)' for '(sm_\w+)'", line):
            found.append(Kernel(match[1], match[2]))
        elif found and (
            match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line)
        ):
            kernel = found[-1]
            kernel.stack = max(kernel.stack, int(match[1]))
            kernel.spill_stores += int(match[2])
            kernel.spill_loads += int(match[3])
        elif found and (match := re.search(r"Used (\d+) registers", line)):
            found[-1].registers = int(match[1])
            if stack := re.search(r"(\d+) bytes cumulative stack size", line):
                found[-1].stack = max(found[-1].stack, int(stack[1]))
            if shared := re.search(r"(\d+) bytes smem", line):
                found[-1].shared = int(shared[1])
    return found


def main() -> int:
    path, *wanted = sys.argv[1:]
    log = Path(path).read_text()
    if shutil.which("c++filt"):
        log = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True).stdout
    kernels, bounded = kernels_of(log), bounded_kernels()
    bad = [f"{k.architecture} {k.name}: {problem}" for k in kernels for problem in k.problems(bounded)]
    architectures: dict[str, set[str]] = {}
    for kernel in kernels:
        architectures.setdefault(kernel.name, set()).add(kernel.architecture)
    for name, has in architectures.items():
        # Kernels for sm_90a alone are there for nothing else.
        bad += [f"{name}: not compiled for {each}" for each in wanted if each not in has and has != {"sm_90a"}]
    if not kernels:
        bad.append(f"{path} tells of no kernel: build from scratch with PYLLM_WERROR=ON")
    print("\n".join(bad))
    most = max((k.registers for k in kernels), default=0)
    print(f"{len(kernels)} compiled kernels, {len(bad)} problems, at most {most} registers")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
