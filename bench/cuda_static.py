"""STATIC figures of compiled CUDA kernels, without a GPU; none of them is a time.

Usage: cuda_static.py [--filter TEXT] CUBIN...      (nvcc -cubin -arch=sm_90 ...; needs nvdisasm and c++filt)

Of each kernel whose loops hold 16-byte loads and products on tensor cores: instructions of the shortest such loop (all
its paths: an upper bound), 16-byte loads among them, bytes of these an instruction, and the share of issue slots that
it takes where a multiprocessor is fed as fast as an H200's memory can: 4.3 TB/s over 132 of them at 1.7 GHz are 19
bytes a clock, for which 4 schedulers issue an instruction of a warp each. Above 100 % memory waits for instructions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import Counter
from collections.abc import Iterator

BYTES_A_CLOCK = 4.3e12 / 132 / 1.7e9
SCHEDULERS = 4
LOAD_BYTES = 32 * 16  # of a warp


def kernels(cubin: str) -> Iterator[tuple[str, list[str]]]:
    """Names and lines: labels (ending in a colon) and instructions."""
    text = subprocess.run(["nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    name, lines = "", list[str]()
    for line in text.splitlines():
        if match := re.match(r"\.text\.(\S+):", line):
            if name:
                yield name, lines
            name, lines = match[1], []
        elif re.match(r"\.L_x_\d+:", line):
            lines.append(line.strip())
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            lines.append(match[1].strip())
    if name:
        yield name, lines


def loops(lines: list[str]) -> Iterator[list[str]]:
    """Opcodes from each label to a branch back to it."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    for end, line in enumerate(lines):
        target = re.match(r"BRA.*`\((\.L_x_\d+)\)", line)
        if target and labels.get(target[1], end) < end:
            body = lines[labels[target[1]] : end + 1]
            yield [one.split()[0] for one in body if not one.endswith(":")]


def is_wide_load(opcode: str) -> bool:
    return opcode.startswith("LDG") and ".128" in opcode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cubins", nargs="+")
    parser.add_argument("--filter", default="", help="only kernels whose name, as declared, contains this")
    args = parser.parse_args()
    for cubin in args.cubins:
        for mangled, lines in kernels(cubin):
            name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
            work = [one for one in loops(lines) if any(map(is_wide_load, one)) and any("MMA" in o for o in one)]
            if not work or args.filter not in name:
                continue
            loop = min(work, key=len)
            loads = sum(map(is_wide_load, loop))
            each = LOAD_BYTES * loads / len(loop)
            most = ", ".join(f"{o} {n}" for o, n in Counter(o.split(".")[0] for o in loop).most_common(6))
            print(name.replace("pyllm::cuda::", "").split("(")[0])
            share = BYTES_A_CLOCK / SCHEDULERS / each
            print(f"    {len(loop)} instructions, {loads} loads: {each:.1f} bytes each, {share:.0%} of slots; {most}")


if __name__ == "__main__":
    main()
