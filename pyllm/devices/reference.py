"""The NumPy interpreter as a device: the same Runner and KvCache as the C++ one, in float64. Slow, for checking."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfMemoryError
from ..program.batch import SUMMARY_COLUMNS, Batch, Capture, KvCache, Summary
from ..program.interpreter import Interpreter, KeyValues, Tensors
from ..program.network import Network, as_network
from ..program.program import Program


class ReferenceCache:
    """Paged keys and values with reference-counted blocks. `max_blocks`: how many may be in use at once."""

    def __init__(self, key_values: KeyValues, max_blocks: int = 1 << 20) -> None:
        self.key_values = key_values
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
    """A network over bound tensors, computed in float64, or with the roundings of bfloat16 models.

    dtype: "float64" (also what a float32 model should give) or "bfloat16".
    """

    def __init__(
        self, network: Network | Program, tensors: Tensors, *, dtype: Literal["float64", "bfloat16"] = "float64"
    ) -> None:
        self.network = as_network(network)
        self._interpreters = {
            name: Interpreter(program, tensors, bfloat16=dtype == "bfloat16")
            for name, program in self.network.programs.items()
        }

    @property
    def vocab_size(self) -> int:
        return self.network.main.vocab_size

    @property
    def max_positions(self) -> int:
        return self.network.main.max_positions

    def new_cache(self, program: str = "step") -> ReferenceCache:
        """An empty cache for one program's own keys and values."""
        return ReferenceCache(KeyValues.of(self.network.programs[program]))

    def new_cross_cache(self) -> ReferenceCache:
        """An empty cache for the keys and values of sources."""
        return ReferenceCache(KeyValues.cross(self.network.main))

    def run(
        self,
        batch: Batch,
        cache: KvCache,
        *,
        program: str = "step",
        cross: KvCache | None = None,
        capture: Capture | None = None,
        summary: Summary | None = None,
    ) -> NDArray[np.float32]:
        """One step; output float32 [R, n], a fresh array."""
        for given in (cache, cross):
            if given is not None and not isinstance(given, ReferenceCache):
                raise TypeError(f"[reference] caches must come from new_cache(), got {type(given).__name__}")
        assert isinstance(cache, ReferenceCache)
        sources = cross.key_values if isinstance(cross, ReferenceCache) else None
        interpreter = self._interpreters[program]
        weights: dict[str, list[NDArray[np.float64]]] | None = {} if capture and capture.attentions else None
        trace = interpreter.run(batch, cache.key_values, sources, weights)
        if capture is not None:
            capture.values = {name: trace[name].astype(np.float32) for name in capture.buffers}
            capture.weights = {
                name: [rows.astype(np.float32) for rows in (weights or {})[name]] for name in capture.attentions
            }
        output = trace[interpreter.program.output.name]
        if summary is not None:
            summary.blocks = _summarised(output, summary.scales)
        return output.astype(np.float32)


def _summarised(logits: NDArray[np.float64], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Summary.blocks of logits [R, n]."""
    rows, n = logits.shape
    padded = np.full((rows, -(-n // SUMMARY_COLUMNS) * SUMMARY_COLUMNS), -np.inf)
    padded[:, :n] = logits
    blocks = padded.reshape(rows, -1, SUMMARY_COLUMNS)
    highest = blocks.max(axis=2)
    scale = 1.0 if scales is None else scales.astype(np.float64)[:, None, None]
    with np.errstate(invalid="ignore"):  # -inf * 0, and blocks of nothing but -inf, whose sum is to be NaN
        powers = np.exp((blocks - highest[:, :, None]) * scale)
    powers[:, -1, n - (blocks.shape[1] - 1) * SUMMARY_COLUMNS :] = 0  # the padding
    return np.stack([highest, powers.sum(axis=2)], axis=2).astype(np.float32)
