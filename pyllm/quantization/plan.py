"""What of a checkpoint becomes integers: the tensors that are only ever multiplied by activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..devices.formats import quantizable
from ..program.network import Network
from ..program.program import Embed, Linear, Program
from ..program.tensors import Matrix


@dataclass(frozen=True)
class Planned:
    """A tensor to be quantised. transposed: it is stored [inputs, outputs]. input: the buffer that its matmul reads,
    by program and name; None for experts, whose rows are chosen inside their op."""

    shape: tuple[int, ...]
    transposed: bool
    input: tuple[str, str] | None

    @property
    def outputs(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inputs(self) -> int:
        return self.shape[0] if self.transposed else self.shape[1]


def plan(network: Network) -> dict[str, Planned]:
    """Canonical names of the tensors whose every use is in a quantizable() matrix. Not among them: tables that are
    looked up (and heads tied to them), and what is computed at load."""
    wanted = quantizable(network)
    found: dict[str, Planned] = {}
    kept: set[str] = set()
    for name, program in network.programs.items():
        inputs = {op.weight: (name, op.x.name) for op in program.ops if isinstance(op, Linear)}
        tables = set(_tables(program))
        for matrix in program.matrices():
            for source in matrix.sources:
                if matrix not in wanted or matrix in tables or len(source.shape) != 2:
                    kept.add(source.name)
                else:
                    found.setdefault(source.name, Planned(source.shape, source.transposed, inputs.get(matrix)))
        kept |= set(program.derived) | set(program.constants)
        kept |= {each.name for derived in program.derived.values() for each in derived.inputs}
    return {name: each for name, each in found.items() if name not in kept and name.endswith("weight")}


def _tables(program: Program) -> Iterator[Matrix]:
    for op in program.ops:
        if isinstance(op, Embed):
            yield from (table for table in (op.table, op.positions, op.types) if table is not None)
