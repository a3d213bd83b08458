"""`Network`: the programs of one model. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .program import Program


@dataclass(frozen=True)
class Network:
    """A model: the programs that its checkpoint runs.

    decoder          `step`
    encoder          `encode`, whose output is that of `head`, or the last hidden state without one
    encoder-decoder  `encode` (reads the source once, fills the cross cache; output: the last hidden state), then `step`

    head: what `encode` ends in: "masked-lm", "sequence-classification" (one row a sequence: its first),
    "token-classification", "question-answering" (columns start, end), or None.
    """

    family: str
    step: Program | None = None
    encode: Program | None = None
    head: str | None = None

    @property
    def kind(self) -> Literal["decoder", "encoder", "encoder-decoder"]:
        """Which of the three it is."""
        if self.encode is None:
            return "decoder"
        return "encoder" if self.step is None else "encoder-decoder"

    @property
    def programs(self) -> dict[str, Program]:
        """Programs by name, in the order they run."""
        named = {"encode": self.encode, "step": self.step}
        return {name: program for name, program in named.items() if program is not None}

    @property
    def main(self) -> Program:
        """The program whose vocabulary and positions are the model's: `step`, or else `encode`."""
        program = self.step or self.encode
        assert program is not None
        return program

    def __str__(self) -> str:
        if len(self.programs) == 1:
            return str(self.main)
        return "\n".join(f"-- {name} --\n{program}" for name, program in self.programs.items())


def as_network(program: Program | Network) -> Network:
    """A program by itself is a decoder."""
    return program if isinstance(program, Network) else Network(program.family, step=program)
