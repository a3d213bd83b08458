"""`LanguageModel`: a loaded checkpoint that generates text. Loading is in loading.py, the loop in engine.py."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..decode.options import GenerationOptions
from ..decode.policy import Policy, make_policy
from ..errors import (
    ContextLengthError,
    InvalidOptionError,
    OutOfMemoryError,
    PicklingError,
    PromptError,
    PyllmError,
    TokenizerError,
)
from ..program.batch import KvCache, Runner
from ..program.program import Program
from ..tokenization import Detokenizer, Tokenizer
from .engine import Engine
from .prompts import Prompt, Prompts, bounded, read_prompt, read_prompts
from .results import GeneratedSequence, Generation
from .streams import TextStream, feed, new_tokens

SEQUENCES_AT_ONCE = 64  # live sequences of one generate() call; further prompts wait (bounds the cache's memory)


class LanguageModel:
    """A decoder model ready to run. Made by `pyllm.load`.

    Threads may share one: each call has its own cache. It survives `fork`. Use it in a `with` block, or call `close`,
    to free its memory at a known time.

    folder, config                      where it came from, and its config.json
    generation_config                   generation_config.json, or the generation options in config.json without one
    program                             the recorded network; print it
    dtype, device                       what it computes in ("float32", "bfloat16") and on ("cpu", "reference")
    """

    def __init__(
        self,
        program: Program,
        runner: Runner,
        *,
        folder: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        tokenizer: Callable[[], Tokenizer],
        dtype: str,
        device: str,
    ) -> None:
        self.program = program
        self.folder = folder
        self.config = config
        self.generation_config = generation_config
        self.dtype = dtype
        self.device = device
        self._runner: Runner | None = runner
        self._load_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._idle_caches: list[KvCache] = []

    @overload
    def generate(self, prompt: Prompt, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, **options: Any) -> list[Generation]: ...
    def generate(self, prompt: Prompt | Prompts, **options: Any) -> Generation | list[Generation]:
        """Continues one prompt (a str or a list of token ids) or, in one batch, a list of them.

        options: transformers' generate() options by name, on top of generation_config.json; `seed=` makes sampling
        repeatable, and a prompt's sample doesn't depend on its batch. Lengths nobody asked for end at the context.
        Raises PromptError, ContextLengthError, InvalidOptionError, UnknownOptionError, NumericError.
        """
        prompts, single = read_prompts(prompt, self._encode)
        results = self.run(prompts, GenerationOptions.build(self.generation_config, options))
        return results[0] if single else results

    def stream(self, prompt: Prompt, **options: Any) -> TextStream:
        """Iterator over pieces of the new text, each as soon as it is certain: never half a character, and joined they
        are the text. Options as for `generate`; beams have no certain text before their end and are refused.

        The options and the prompt are checked in this call, not at the first piece.
        """
        ids = read_prompt(prompt, self._encode)
        return self.stream_ids(ids, GenerationOptions.build(self.generation_config, options))

    def logits(self, prompt: Prompt) -> NDArray[np.float32]:
        """One forward pass: float32 [T, V], row t scores what follows token t. Raises PromptError,
        ContextLengthError."""
        ids = read_prompt(prompt, self._encode)
        outside = sorted({token for token in ids if not 0 <= token < self.program.vocab_size})
        if not ids or outside:
            rule = f"ids must lie in [0, {self.program.vocab_size}), got {outside}" if ids else "got no tokens"
            raise PromptError(f"[logits] {rule}; pass at least one id of this model's vocabulary")
        if len(ids) > self.program.max_positions:
            raise ContextLengthError(
                f"[logits] a text must fit the context, got {len(ids)} tokens for a context of "
                f"{self.program.max_positions}; shorten it"
            )
        with self._session() as engine:
            return engine.score(ids)

    def run(self, prompts: Sequence[list[int]], options: GenerationOptions) -> list[Generation]:
        """`generate` for callers that have token ids and checked options: one Generation for each prompt."""
        policies = self._policies(prompts, options)
        with self._session() as engine:
            if options.streamer is not None:
                if len(policies) != 1:
                    raise InvalidOptionError(f"[generate] a streamer takes one prompt, got {len(policies)}; drop it")
                feed(options.streamer, engine, policies[0])
            else:
                _run_all(engine, policies, at_once=max(1, SEQUENCES_AT_ONCE // _width(options)))
            return [self._generation(policy) for policy in policies]

    def stream_ids(self, ids: list[int], options: GenerationOptions) -> TextStream:
        """`stream` for callers that have token ids and checked options."""
        _check_streamable(options)
        self._open_runner()
        pieces = self._pieces(self._policies([ids], options)[0], self.tokenizer.detokenizer(ids))
        return TextStream(pieces)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read at first use. Raises TokenizerError."""
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    @property
    def max_positions(self) -> int:
        """Context length: most tokens of prompt and continuation together."""
        return self.program.max_positions

    def memory_report(self) -> dict[str, int]:
        """Bytes held, by what for: packed weights, activations, key/value cache and so on. Empty for the reference
        device, which keeps no count."""
        runner = self._open_runner()
        report: dict[str, int] = runner.memory_report() if hasattr(runner, "memory_report") else {}
        return report

    def close(self) -> None:
        """Frees weights and caches. Generating afterwards is an error; running generations end first."""
        self._runner = None
        self._idle_caches = []

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LanguageModel({self.folder.name!r}, {self.program.family}, {self.dtype} on {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        raise PicklingError(
            "[model] a loaded model can't be pickled or copied, got an attempt to; send its `folder` and pyllm.load it "
            "there, or fork, which it survives"
        )

    def _open_runner(self) -> Any:
        if self._runner is None:
            raise PyllmError("[model] a closed model can't run; load it again with pyllm.load")
        return self._runner

    @contextmanager
    def _session(self) -> Iterator[Engine]:
        """An engine on a cache of its own. The cache is kept for the next session unless an exception came through.
        NumPy's MemoryErrors become OutOfMemoryErrors."""
        runner = self._open_runner()
        try:
            cache = self._idle_caches.pop()
        except IndexError:
            cache = runner.new_cache()
        try:
            with Engine(runner, cache) as engine:
                yield engine
        except MemoryError as error:
            if isinstance(error, OutOfMemoryError):
                raise
            raise OutOfMemoryError(
                f"[model] the arrays of a call must fit the memory, got: {error or 'refused'}; give less text at once, "
                "or leave out output_scores and output_logits"
            ) from error
        if self._runner is not None and not self._idle_caches:
            self._idle_caches.append(cache)

    def _policies(self, prompts: Sequence[list[int]], options: GenerationOptions) -> list[Policy]:
        """One policy for each prompt; what is wrong with any of them is raised at once."""
        decode = self._decode_all if options.stop_strings else None
        policies: list[Policy] = []
        wrong: list[tuple[int, PromptError]] = []
        for index, ids in enumerate(prompts):
            fitting = bounded(options, len(ids), self.max_positions)
            try:
                policies.append(
                    make_policy(
                        ids,
                        fitting,
                        vocab_size=self.program.vocab_size,
                        batch_id=index,
                        max_positions=self.max_positions,
                        decode=decode,
                    )
                )
            except PromptError as error:
                wrong.append((index, error))
        if wrong and len(prompts) == 1:
            raise wrong[0][1]
        if wrong:
            raise type(wrong[0][1])(" | ".join(f"prompt {index}: {error}" for index, error in wrong))
        return policies

    def _pieces(self, policy: Policy, detokenizer: Detokenizer) -> Generator[str, None, Generation]:
        with self._session() as engine:
            for tokens in new_tokens(engine, policy):
                for token in tokens:
                    if piece := detokenizer.push(token):
                        yield piece
        if piece := detokenizer.finish():
            yield piece
        return self._generation(policy)

    def _generation(self, policy: Policy) -> Generation:
        results = policy.results()
        sequences = [GeneratedSequence.of(h, self._text(policy.prompt_ids, h.token_ids)) for h in results]
        return Generation(sequences, policy.prompt_ids, policy.seed if policy.options.do_sample else None)

    def _text(self, prompt_ids: list[int], token_ids: list[int]) -> str | TokenizerError:
        """What a stream of these tokens joins to: text that follows the prompt, its first space included."""
        try:
            detokenizer = self.tokenizer.detokenizer(prompt_ids)
        except TokenizerError as error:
            return error
        return "".join([*map(detokenizer.push, token_ids), detokenizer.finish()])

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _decode_all(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def _width(options: GenerationOptions) -> int:
    """Sequences of one prompt that may live at once."""
    return max(options.num_beams, options.num_return_sequences)


def _run_all(engine: Engine, policies: Sequence[Policy], at_once: int) -> None:
    """Runs every policy to its end, `at_once` of them side by side; the next one starts when one is done."""
    waiting = list(policies)[::-1]
    while waiting or engine.busy:
        while waiting and engine.groups < at_once:
            engine.add(waiting.pop())
        engine.step()


def _check_streamable(options: GenerationOptions) -> None:
    problems = {
        "num_beams must be 1 (beams change until the end)": options.num_beams > 1,
        "num_return_sequences must be 1": options.num_return_sequences > 1,
        "streamer is for generate()": options.streamer is not None,
    }
    if any(problems.values()):
        raise InvalidOptionError("[stream] " + "; ".join(rule for rule, broken in problems.items() if broken))
