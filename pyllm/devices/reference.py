"""The NumPy interpreter as a device: the same Runner and KvCache as the C++ one, in float64. Slow, for checking."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfMemoryError
from ..program.batch import Batch, KvCache
from ..program.interpreter import Interpreter, KeyValues, Tensors
from ..program.program import Program


class ReferenceCache:
    """Paged keys and values with reference-counted blocks. `max_blocks`: how many may be in use at once."""

    def __init__(self, program: Program, max_blocks: int = 1 << 20) -> None:
        self.key_values = KeyValues(program)
        self._max_blocks = max_blocks
        self._references: list[int] = []
        self._free: list[int] = []

    def allocate(self) -> int:
        if self.blocks_in_use >= self._max_blocks:
            problem = f"{self._max_blocks} blocks may be in use, one more was asked for"
            raise OutOfMemoryError(f"[kv cache] {problem}, generate fewer or shorter sequences")
        if not self._free:
            self._free.append(len(self._references))
            self._references.append(0)
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        self._references[self._held(block)] += 1

    def release(self, block: int) -> None:
        self._references[self._held(block)] -= 1
        if self._references[block] == 0:
            self._free.append(block)

    def references(self, block: int) -> int:
        return self._references[block] if 0 <= block < len(self._references) else 0

    def copy(self, block: int) -> int:
        self._held(block)
        fresh = self.allocate()
        self.key_values.copy(block, fresh)
        return fresh

    @property
    def blocks_in_use(self) -> int:
        return len(self._references) - len(self._free)

    def _held(self, block: int) -> int:
        if self.references(block) == 0:
            raise ValueError(f"[kv cache] blocks must be in use, block {block} is not; allocate it first")
        return block


class ReferenceRunner:
    """A program over bound tensors, computed in float64, or with the roundings of bfloat16 models.

    dtype: "float64" (also what a float32 model should give) or "bfloat16".
    """

    def __init__(
        self, program: Program, tensors: Tensors, *, dtype: Literal["float64", "bfloat16"] = "float64"
    ) -> None:
        self.program = program
        self._interpreter = Interpreter(program, tensors, bfloat16=dtype == "bfloat16")

    @property
    def vocab_size(self) -> int:
        return self.program.vocab_size

    @property
    def max_positions(self) -> int:
        return self.program.max_positions

    def new_cache(self) -> ReferenceCache:
        """An empty cache."""
        return ReferenceCache(self.program)

    def run(self, batch: Batch, cache: KvCache) -> NDArray[np.float32]:
        """One step; logits float32 [R, V], a fresh array."""
        if not isinstance(cache, ReferenceCache):
            raise TypeError(f"[reference] caches must come from new_cache(), got {type(cache).__name__}")
        return self._interpreter.run(batch, cache.key_values)[self.program.logits.name].astype(np.float32)
