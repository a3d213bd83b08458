"""The CUDA device: packs a network's weights onto a GPU and runs batches there. All arithmetic is in cuda/."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import DeviceError
from ..program.batch import CUT, Batch, Capture, KvCache, Tokens
from ..program.network import Network, as_network
from ..program.program import Program
from . import cuda_driver, cuda_store, packed_cache
from .compiled import CompiledRunner, Wanted, checked_caches, inputs
from .cuda_memory import DeviceMemory, Kept
from .cuda_packing import DeviceWeights
from .cuda_rows import Chooser, CudaRows
from .formats import plain_dtype
from .lowering import Lowering, Routine
from .packing import Tensors, load_weights

SEQUENCES_AT_ONCE = 128
ROWS_PER_STEP = 2048  # enough for matmuls to run at the speed of the tensor cores


class CudaRunner(CompiledRunner):
    """A network on a GPU. Threads may share one: steps take turns, caches are independent.

    dtype: "float32" (true float32, no tensor cores), "bfloat16" or "float16": weights, keys, values and the inputs of
    matmuls; sums and what lies between them are float32 in all. quantization, kv_cache, progress, folder: as
    CpuRunner's; integer weights meet activations in dtype. device_index: which GPU.

    rows_per_step: of the engine's steps; memory is laid out for as many at load. sequences_at_once: of one call of
    generate(), as many as the largest decode graph has rows.
    A process that was forked off cannot use it: CUDA does not survive that.
    Raises ProgramError, InvalidOptionError, DeviceError, OutOfMemoryError.
    """

    rows_per_step = ROWS_PER_STEP
    sequences_at_once = SEQUENCES_AT_ONCE

    def __init__(
        self,
        network: Network | Program,
        tensors: Tensors,
        *,
        dtype: str,
        quantization: str | None = None,
        kv_cache: str | None = None,
        progress: bool = False,
        device_index: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._module, xp = cuda_driver.load(device_index)
        if (library := cuda_driver.cublaslt_path()) is not None:
            self._module.load_cublaslt(library)  # else our own kernels multiply matrices of many rows
        network = as_network(network)
        lowered = Lowering(network, dtype, quantization, kv_cache, getattr(tensors, "kind", None))
        super().__init__("cuda", network, lowered)
        self._memory = DeviceMemory(self._module, xp, device_index)
        self._kept = Kept(self._memory)
        self._executor = self._module.Executor(
            lowered.program, plain_dtype(dtype), device_index, self._memory.stream, self._kept.replace
        )
        self._outputs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._chooser = Chooser(self._module, xp, self._memory, device_index)
        self._process = os.getpid()
        self._weights = DeviceWeights(lowered, partial(self._memory.upload, "weights"))
        key = cuda_store.key_in(folder, lowered) if folder and self.quantization else None
        pack = partial(load_weights, self._weights, lowered, tensors, progress)
        packed_cache.load(cuda_store.StoredWeights(self._weights, self._memory), key, pack)
        self._place_weights()
        self._weight_bytes = sum(array.nbytes for array in self._weights.arrays)
        self._executor.reserve(self.rows_per_step)

    @property
    def graphs(self) -> int:
        """Sizes of decode steps that run as CUDA graphs by now."""
        return int(self._executor.graphs)

    @property
    def sent_bytes(self) -> int:
        """What steps have sent to the device besides their weights: ids, positions, block addresses and the like."""
        return int(self._executor.sent_bytes)

    def set_buckets(self, enable: bool) -> None:
        """Whether decode steps are padded to the sizes that graphs are made for; changes speed, no result."""
        self._executor.set_buckets(enable)

    def new_cache(self, program: str = "step", max_bytes: int = 0) -> Any:
        """An empty cache of one program's own keys and values; max_bytes 0: as large as memory allows."""
        routine, slabs = self._routine(program), Kept(self._memory)
        return self._noted(self._executor.new_cache(routine.index, max_bytes, slabs.add))

    def new_cross_cache(self, max_bytes: int = 0) -> Any:
        """An empty cache for the keys and values of sources, which an encoder stores and its decoder reads."""
        self._check_process()
        return self._noted(self._executor.new_cross_cache(max_bytes, Kept(self._memory).add))

    def run(
        self,
        batch: Batch,
        cache: KvCache,
        *,
        program: str = "step",
        cross: KvCache | None = None,
        capture: Capture | None = None,
    ) -> Any:
        """One step; output float32 [R, n] on the device (a cupy.ndarray), a view of the cache's buffer, which the
        cache's next step overwrites. It is ready in the order of CuPy's current stream; nothing waits for it here.

        capture: its values and weights are set to fresh NumPy arrays.
        Raises PromptError (ids, token types), ContextLengthError (positions), ArrayError (anything else wrong with the
        batch, the caches or the names to capture) and OutOfMemoryError; the caches' content is then unchanged.
        DeviceError in a forked process, or for what the GPU reports.
        """
        routine = self._routine(program)
        own, sources = checked_caches(self._module.KvCache, cache, cross)
        wanted = Wanted(routine, capture)
        with self._lock:
            held, rows = self._output(cache, routine, len(batch.logit_rows))
            values, weights = self._executor.run(
                routine.index,
                *inputs(batch),
                own,
                self._memory.address(held),
                self._memory.current_stream(),
                batch.token_types,
                sources,
                batch.cross_table,
                batch.cross_context,
                *wanted.ids,
            )
            self._kept.drop("captures")
        wanted.give(values, weights)
        return rows

    @property
    def rows_ahead(self) -> int:
        """See program.batch.AheadRunner."""
        return int(self._executor.rows_ahead(self._routine("step").index)) if "step" in self._routines else 0

    def run_ahead(
        self,
        batch: Batch,
        cache: KvCache,
        choices: NDArray[Any],
        cuts: int = CUT,
        *,
        cross: KvCache | None = None,
        after: Tokens | None = None,
    ) -> Tokens:
        """See program.batch.AheadRunner. In a steady decode a step is one CUDA graph and nothing is sent to the device
        but, where a sequence got a block, block addresses. Raises as `run`."""
        routine = self._routine("step")
        own, sources = checked_caches(self._module.KvCache, cache, cross)
        with self._lock:
            flight: Tokens = self._executor.run_ahead(
                routine.index,
                *inputs(batch),
                own,
                choices,
                cuts,
                after,
                sources,
                batch.cross_table,
                batch.cross_context,
            )
        return flight

    def device_rows(self, output: Any) -> CudaRows:
        """What `run` gave, as program.batch.DeviceRows: choices are made on the GPU."""
        return self._chooser.rows(output)

    def memory_report(self) -> dict[str, int]:
        """Bytes held: weights, activations and scratch of a step, key/value caches, outputs, all on the device; and
        pinned memory of the host."""
        activations, pinned = self._executor.memory()
        return {
            "weights": self._weight_bytes,
            "activations": int(activations),
            "key_value_cache": sum(cache.bytes for cache in list(self._caches)),
            "outputs": sum(int(held.nbytes) for held, _ in list(self._outputs.values())),
            "pinned_host": int(pinned),
        }

    def _place_weights(self) -> None:
        """Tells the executor where everything lies."""

        def address(array: Any) -> int:
            return 0 if array is None else self._memory.address(array)

        for index, one in self._weights.matrices.items():
            addresses = (address(array) for array in (one.codes, one.scales, one.zeros, one.bias))
            self._executor.set_matrix(index, *addresses, one.ld)
        for index, vector in self._weights.vectors.items():
            self._executor.set_vector(index, address(vector))
        self._executor.place_tables(self._kept.replace("tables", max(self._executor.table_bytes(), 1)))

    def _output(self, cache: Any, routine: Routine, count: int) -> tuple[Any, Any]:
        """The cache's buffer, and its first `count` rows as columns of the routine's output."""
        cols, ld = self._columns(routine)
        held, views = self._outputs.get(cache, (None, {}))
        if held is None or held.size < count * ld:
            held, views = self._memory.floats("output", max(count * ld, 1)), {}
            self._outputs[cache] = held, views
        if (count, cols) not in views:
            views[count, cols] = held[: count * ld].reshape(count, ld)[:, :cols]
        return held, views[count, cols]

    def _columns(self, routine: Routine) -> tuple[int, int]:
        """Of the output, and floats between its rows."""
        return self._executor.output_cols(routine.index), self._executor.output_ld(routine.index)

    def _routine(self, program: str) -> Routine:
        self._check_process()
        return super()._routine(program)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise DeviceError(
                "[cuda] a model on a GPU does not survive fork: this process was forked from the one that loaded it; "
                "load the model here, or start processes with multiprocessing's 'spawn'"
            )
