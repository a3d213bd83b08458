"""The format each matrix is packed in: that of the model's dtype, one that was asked for, or the checkpoint's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..checkpoint.codes import Kind
from ..program.network import Network
from ..program.program import Experts, Linear
from ..program.tensors import Matrix

# float32-bf16x3: float32, but matmuls take three products of bfloat16 halves where there are tiles (csrc/kernels.h).
DTYPES = ("float32", "bfloat16", "float16", "float32-bf16x3")
QUANTIZATIONS = ("int8", "int8-fast", "int4", "int4-g128")
KV_CACHES = ("float32", "bfloat16", "float16", "int8")
# Inputs that share a scale in a format of 4 bits. A "z" in its name: with zero points, which packing from floats never
# makes.
GROUPS = {"int4": 32, "int4z": 32, "int4-g128": 128, "int4z-g128": 128}
BITS = {
    "float32": 32,
    "float32-bf16x3": 32,
    "bfloat16": 16,
    "float16": 16,
    "int8": 8,
    "int8-fast": 8,
    **dict.fromkeys(GROUPS, 4),
}
FEWEST_OUTPUTS = 16  # of a matrix worth quantising: smaller ones are gates and labels, which save next to nothing


@dataclass(frozen=True)
class Chosen:
    """format: as _C.Program.add_matrix names it. codes: packed from the checkpoint's integers, without any change.
    inexact: how the checkpoint stores what no format holds, so that it is quantised again; else empty."""

    format: str
    codes: bool = False
    inexact: str = ""


def plain_dtype(dtype: str) -> str:
    """What is kept where a dtype says how matmuls run: tables, keys and values."""
    return dtype.partition("-")[0]


def quantizable(network: Network) -> set[Matrix]:
    """The matrices that quantization applies to: all that a Linear or Experts op multiplies by, but routers and those
    of fewer than 16 outputs."""
    found: set[Matrix] = set()
    for program in network.programs.values():
        routers = {op.router for op in program.ops if isinstance(op, Experts)}
        for op in program.ops:
            if isinstance(op, Linear) and op.out not in routers:
                found.add(op.weight)
            elif isinstance(op, Experts):
                found.update(op.matrices)
    return {matrix for matrix in found if matrix.shape[0] >= FEWEST_OUTPUTS}


def choose_all(
    network: Network, dtype: str, quantization: str | None, kind: Callable[[str], Kind | None] | None
) -> dict[Matrix, Chosen]:
    """The format of every matrix. kind: how the checkpoint has quantised a tensor (None: not)."""
    quantized, plain = quantizable(network), plain_dtype(dtype)
    chosen: dict[Matrix, Chosen] = {}
    for matrix in dict.fromkeys(matrix for program in network.programs.values() for matrix in program.matrices()):
        if matrix in quantized:
            kinds = [kind(source.name) if kind else None for source in matrix.sources]
            chosen[matrix] = choose(dtype, quantization, kinds)
        else:
            chosen[matrix] = Chosen(plain)
    return chosen


def weight_bytes(matrix: Matrix, name: str) -> int:
    """Of a matrix in a format, scales and zero points included, padding not."""
    outputs, inputs = matrix.shape
    scales = 0
    if name in GROUPS:
        scales = -(-inputs // GROUPS[name]) * (3 if name.startswith("int4z") else 2)  # float16, and a byte
    elif BITS[name] == 8:
        scales = 4  # float32
    return outputs * (inputs * BITS[name] // 8 + scales)


def choose(dtype: str, quantization: str | None, kinds: Sequence[Kind | None]) -> Chosen:
    """The format of a quantizable matrix whose sources are quantised as `kinds` says (None: not).

    quantization None: as the checkpoint has it, and int8 where no format holds that. Otherwise that one, but zero
    points of 4-bit codes are kept: they are better than quantising once more.
    """
    own = _own(kinds)
    labels = {kind.label for kind in kinds if kind is not None}
    if own is None and labels:
        inexact = " and ".join(sorted(labels))
        return Chosen(quantization or (dtype if None in kinds else "int8"), inexact=inexact)
    if quantization is None:
        return Chosen(dtype) if own is None else Chosen(own, codes=True)
    if own is None or BITS[own] != BITS[quantization]:
        return Chosen(quantization)
    if own == "int8":
        return Chosen(quantization, codes=True)
    if GROUPS[own] % GROUPS[quantization]:
        return Chosen(quantization)
    return Chosen(quantization.replace("int4", own.partition("-")[0]), codes=True)


def _own(kinds: Sequence[Kind | None]) -> str | None:
    """The format that holds all sources' integers as they are; of 4 bits the one with the largest groups."""
    held = [kind for kind in kinds if kind is not None and kind.bits]
    if not held or len(held) < len(kinds) or len({kind.bits for kind in held}) > 1:
        return None
    if held[0].bits == 8:
        return "int8"
    for suffix, group in (("-g128", 128), ("", 32)):
        if all(kind.whole or kind.group_size % group == 0 for kind in held):
            return ("int4z" if any(kind.zeros for kind in held) else "int4") + suffix
    return None
