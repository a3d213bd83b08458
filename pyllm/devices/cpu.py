"""The CPU device: packs a network's weights into the C++ executor and runs batches. All arithmetic is in csrc/."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import _C
from ..program.batch import Batch, Capture, KvCache, Summary
from ..program.network import Network, as_network
from ..program.program import Program
from . import packed_cache, tuning
from .compiled import CompiledRunner, Wanted, checked_caches, inputs
from .lowering import Lowering
from .packing import Tensors, load_weights


class CpuRunner(CompiledRunner):
    """A network on this machine's processors. Threads may share one: steps take turns, caches are independent.

    dtype: "float32", "bfloat16" (weights, keys, values and the inputs of matmuls) or "float16" (weights, keys, values);
    sums are float32 in all. quantization: None (as the checkpoint is), "int8", "int8-fast", "int4" or "int4-g128", for
    the matrices of formats.quantizable. kv_cache None: as dtype; or another dtype, or "int8".
    num_threads None: PYLLM_NUM_THREADS, OMP_NUM_THREADS, or the cores this process may use. isa None: the best
    instruction set here, or PYLLM_ISA's. progress: a bar on stderr while packing, if it is a terminal.
    folder: where the tensors come from, by whose content packed_cache keeps quantised weights that took long to pack.
    Weights are packed matrix by matrix, once where two programs share one; each tensor is released after its last use.

    Raises ProgramError, InvalidOptionError, DeviceError, OutOfMemoryError.
    """

    _executor: _C.Executor

    def __init__(
        self,
        network: Network | Program,
        tensors: Tensors,
        *,
        dtype: str,
        quantization: str | None = None,
        kv_cache: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        progress: bool = False,
        folder: Path | None = None,
    ) -> None:
        network = as_network(network)
        lowered = Lowering(network, dtype, quantization, kv_cache, getattr(tensors, "kind", None))
        super().__init__("cpu", network, lowered)
        self._executor = _C.Executor(lowered.program, num_threads, isa)
        if (measured := tuning.kept(self.isa, self.num_threads)) is not None:
            self.set_sharing(measured.repeat_rows, measured.own_rows)
        # Floats are packed as fast as they would be read back.
        key = packed_cache.key_in(folder, repr(lowered.recipe)) if folder and self.quantization else None
        pack = partial(load_weights, self._executor, lowered, tensors, progress)
        packed_cache.load(ExecutorWeights(self._executor), key, pack)

    @property
    def num_threads(self) -> int:
        return self._executor.num_threads

    @property
    def isa(self) -> str:
        """The instruction set in use, by the name of its kernel table (`pyllm doctor` lists those that run here)."""
        return self._executor.isa

    def set_sharing(self, repeat_rows: int, own_rows: int) -> None:
        """How threads divide a step's work (tuning.Thresholds); changes speed, no result. Raises InvalidOptionError."""
        self._executor.set_sharing(repeat_rows, own_rows)

    def new_cache(self, program: str = "step", max_bytes: int = 0) -> _C.KvCache:
        """An empty cache of one program's own keys and values; max_bytes 0: as large as memory allows."""
        return self._noted(self._executor.new_cache(self._routine(program).index, max_bytes))

    def new_cross_cache(self, max_bytes: int = 0) -> _C.KvCache:
        """An empty cache for the keys and values of sources, which an encoder stores and its decoder reads."""
        return self._noted(self._executor.new_cross_cache(max_bytes))

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
        """One step; output float32 [R, n], a view of the cache's buffer, which the cache's next step overwrites.

        capture: its values and weights are set to fresh arrays; asking for some costs barriers, not asking nothing.
        summary: its blocks are set, a view as the output is; the threads make them as they finish the output.
        Raises PromptError (ids, token types), ContextLengthError (positions), ArrayError (anything else wrong with the
        batch, the caches or the names to capture) and OutOfMemoryError; the caches' content is then unchanged.
        """
        routine = self._routine(program)
        own, sources = checked_caches(_C.KvCache, cache, cross)
        wanted = Wanted(routine, capture)
        output, values, weights, blocks = self._executor.run(
            routine.index,
            *inputs(batch),
            own,
            batch.token_types,
            sources,
            batch.cross_table,
            batch.cross_context,
            *wanted.ids,
            summary is not None,
            None if summary is None else summary.scales,
        )
        if summary is not None:
            summary.blocks = blocks
        wanted.give(values, weights)
        return output

    def memory_report(self) -> dict[str, int]:
        """Bytes held: weights, activations and scratch of a step, key/value caches; and how much of all that huge
        pages back at this moment."""
        held = self._executor.memory()
        caches = list(self._caches)
        report = {name: size for name, (size, _) in held.items()}
        report["key_value_cache"] = sum(cache.bytes for cache in caches)
        report["of_it_on_huge_pages"] = sum(huge for _, huge in held.values()) + sum(c.huge_bytes for c in caches)
        return report


class ExecutorWeights:
    """An executor's as packed_cache.Weights."""

    def __init__(self, executor: _C.Executor) -> None:
        self._executor = executor

    @property
    def nbytes(self) -> int:
        return self._executor.packed().nbytes

    def write(self, file: BinaryIO) -> int:
        file.write(self._executor.packed())
        return self._executor.checksum()

    def read(self, file: str, offset: int, checksum: int) -> bool:
        return self._executor.restore(file, offset, checksum)
