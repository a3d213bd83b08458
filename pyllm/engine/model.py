"""`Model`: what every loaded checkpoint has in common: its files, its tokenizer, its runner and caches, its end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..errors import ContextLengthError, OutOfMemoryError, PicklingError, PromptError, PyllmError
from ..program.batch import KvCache, Runner
from ..program.network import Network
from ..program.program import Program
from ..tokenization import Tokenizer

Self = TypeVar("Self", bound="Model")


class Model:
    """A loaded checkpoint. Made by `pyllm.load`, which gives a LanguageModel, a Seq2SeqModel or an EncoderModel.

    Threads may share one: each call has its own cache. It survives `fork`, unless it is on a GPU: a process forked off
    gets a DeviceError there. Use it in a `with` block, or call `close`, to free its memory at a known time.

    folder, config                      where it came from, and its config.json
    generation_config                   generation_config.json, or the generation options in config.json without one
    network                             the recorded programs; print it
    dtype, device                       what it computes in ("float32", "bfloat16", ...) and on ("cpu", "reference")
    quantization                        what most weights are packed as ("int8", "int4", ...); None: as dtype says
    kv_cache                            what keys and values are kept in
    """

    def __init__(
        self,
        network: Network,
        runner: Runner,
        *,
        folder: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        tokenizer: Callable[[], Tokenizer],
        dtype: str,
        device: str,
        quantization: str | None = None,
        kv_cache: str | None = None,
    ) -> None:
        self.network = network
        self.folder = folder
        self.config = config
        self.generation_config = generation_config
        self.dtype = dtype
        self.quantization = quantization
        self.kv_cache = kv_cache or dtype
        self.device = device
        self._runner: Runner | None = runner
        self._read_tokenizer = functools.cache(tokenizer)
        self._idle: dict[str, list[KvCache]] = {}

    @property
    def program(self) -> Program:
        """The program that generates; an encoder's only one."""
        return self.network.main

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read at first use. Raises TokenizerError."""
        return self._read_tokenizer()

    @property
    def max_positions(self) -> int:
        """Context length: most tokens of one sequence."""
        return self.program.max_positions

    @property
    def runner(self) -> Runner:
        """What runs this model's steps: its device's own methods. Raises PyllmError after close()."""
        return self._open_runner()

    def memory_report(self) -> dict[str, int]:
        """Bytes held, by what for: packed weights, activations, key/value cache and so on. Empty for the reference
        device, which keeps no count."""
        runner: Any = self._open_runner()
        report: dict[str, int] = runner.memory_report() if hasattr(runner, "memory_report") else {}
        return report

    def close(self) -> None:
        """Frees weights and caches. Running the model afterwards is an error; running calls end first."""
        self._runner = None
        self._idle = {}

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        types = f"{self.quantization} and {self.dtype}" if self.quantization else self.dtype
        return f"{type(self).__name__}({self.folder.name!r}, {self.network.family}, {types} on {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        forking = "" if self.device.startswith("cuda") else ", or fork, which it survives"
        raise PicklingError(
            "[model] a loaded model can't be pickled or copied, got an attempt to; send its `folder` and pyllm.load it "
            f"there{forking}"
        )

    def _open_runner(self) -> Runner:
        if self._runner is None:
            raise PyllmError("[model] a closed model can't run; load it again with pyllm.load")
        return self._runner

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _check_ids(self, where: str, ids: Sequence[int], vocab_size: int, positions: int) -> None:
        """Raises PromptError for no ids or ids outside the vocabulary, ContextLengthError for too many."""
        outside = sorted({token for token in ids if not 0 <= token < vocab_size})
        if not ids or outside:
            if not ids:
                raise PromptError(f"[{where}] a text needs at least one token, got no tokens; pass some")
            raise PromptError(
                f"[{where}] ids must lie in [0, {vocab_size}), got {outside[:20]}; use the tokenizer that belongs to "
                "this model"
            )
        if len(ids) > positions:
            raise ContextLengthError(
                f"[{where}] a text must fit the context, got {len(ids)} tokens for a context of {positions}; shorten it"
            )

    @contextmanager
    def _cache(self, program: str) -> Iterator[KvCache]:
        """A cache of one program ("cross": of sources) for one call, kept for the next one unless an exception came
        through. NumPy's MemoryErrors become OutOfMemoryErrors."""
        runner = self._open_runner()
        idle = self._idle.setdefault(program, [])
        try:
            cache = idle.pop()
        except IndexError:
            cache = runner.new_cross_cache() if program == "cross" else runner.new_cache(program)
        try:
            yield cache
        except MemoryError as error:
            if isinstance(error, OutOfMemoryError):
                raise
            raise OutOfMemoryError(
                f"[model] the arrays of a call must fit the memory, got: {error or 'refused'}; give less text at once, "
                "or leave out output_scores and output_logits"
            ) from error
        if self._runner is not None and not idle:
            idle.append(cache)
