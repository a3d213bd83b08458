"""`LanguageModel`: a loaded decoder that continues texts. Loading is in loading.py, the loop in engine.py."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..decode.options import GenerationOptions
from ..errors import InvalidOptionError, TokenizerError
from ..program.batch import Runner
from ..program.network import Network
from .captures import Collected, Floats, Layers, Wanted, attention_names, hidden_names, split_wanted
from .generating import GeneratingModel, check_streamable
from .prompts import Prompt, Prompts, read_prompt, read_prompts
from .results import Generation
from .scoring import Score, score_ids
from .speculation import first_difference
from .streams import TextStream


class LanguageModel(GeneratingModel):
    """A decoder model ready to run: GPT-2, Llama and so on. See `Model` for its attributes."""

    def __init__(self, network: Network, runner: Runner, **rest: Any) -> None:
        super().__init__(network, runner, **rest)
        self._assistants: dict[str, LanguageModel] = {}  # that were named, by name
        self._fitting: weakref.WeakSet[LanguageModel] = weakref.WeakSet()  # assistants with this model's tokens

    @overload
    def generate(self, prompt: Prompt, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, **options: Any) -> list[Generation]: ...
    def generate(self, prompt: Prompt | Prompts, **options: Any) -> Generation | list[Generation]:
        """Continues one prompt (a str or a list of token ids) or, in one batch, a list of them.

        options: transformers' generate() options by name, on top of generation_config.json; `seed=` makes sampling
        repeatable, and a prompt's sample doesn't depend on its batch. Lengths nobody asked for end at the context.
        output_hidden_states and output_attentions take True or a list of layers (see GeneratedSequence).
        assistant_model is another LanguageModel of the same tokens, or its folder or Hub id (then it is loaded once, as
        this dtype).
        Raises PromptError, ContextLengthError, InvalidOptionError, UnknownOptionError, NumericError.
        """
        prompts, single = read_prompts(prompt, self._encode)
        rest, wanted = split_wanted(options, self.program)
        results = self.run(prompts, GenerationOptions.build(self.generation_config, rest), wanted)
        return results[0] if single else results

    def stream(self, prompt: Prompt, **options: Any) -> TextStream:
        """Iterator over pieces of the new text, each as soon as it is certain: never half a character, and joined they
        are the text. Options as for `generate`; beams have no certain text before their end and are refused.

        The options and the prompt are checked in this call, not at the first piece.
        """
        ids = read_prompt(prompt, self._encode, "stream")
        return self.stream_ids(ids, GenerationOptions.build(self.generation_config, options))

    def logits(self, prompt: Prompt) -> NDArray[np.float32]:
        """One forward pass: float32 [T, V], row t scores what follows token t. Raises PromptError,
        ContextLengthError."""
        ids = self._checked_prompt("logits", prompt)
        with self._session() as engine:
            return engine.score(ids)

    @overload
    def score(self, text: Prompt) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, text: Prompts) -> list[Score]: ...
    def score(self, text: Prompt | Prompts) -> Score | list[Score]:
        """Log-probability of every token of one text or of each of several, and the perplexity.

        Special tokens that the tokenizer puts in are scored like others; the first token has no probability.
        Raises PromptError, ContextLengthError, NumericError.
        """
        texts, single = read_prompts(text, self._encode, "score")
        for ids in texts:
            self._check_ids("score", ids, self.program.vocab_size, self.max_positions + 1)  # the last is not run
        with self._session() as engine:
            scores = [score_ids(engine, ids) for ids in texts]
        return scores[0] if single else scores

    def hidden_states(self, prompt: Prompt, layers: Layers = None) -> list[Floats]:
        """transformers' `hidden_states` of one text, float32 [T, D] each: 0 the embeddings, i what layer i gives, the
        last one after the final norm. layers: those wanted, None for all."""
        names = hidden_names(self.program, layers)
        return self._collect("hidden_states", prompt, Collected(buffers=names)).hidden(names)

    def attentions(self, prompt: Prompt, layers: Layers = None) -> list[Floats]:
        """Attention weights of one text, float32 [H, T, T] for each layer wanted (None: all)."""
        names = attention_names(self.program, layers)
        return self._collect("attentions", prompt, Collected(attentions=names)).weights(names)

    def run(
        self, prompts: Sequence[list[int]], options: GenerationOptions, wanted: Wanted | None = None
    ) -> list[Generation]:
        """`generate` for callers that have token ids and checked options: one Generation for each prompt."""
        return self._run_policies(self._policies(prompts, options), options, wanted)

    def stream_ids(self, ids: list[int], options: GenerationOptions) -> TextStream:
        """`stream` for callers that have token ids and checked options."""
        check_streamable(options)
        self._open_runner()
        return TextStream(self._pieces(self._policies([ids], options)[0], self._following(self.tokenizer, ids)))

    def close(self) -> None:
        for assistant in self._assistants.values():
            assistant.close()
        self._assistants = {}
        super().close()

    def _assistant(self, given: Any) -> LanguageModel:
        """A loaded model, or one to be loaded once as this one was; its tokens must be this model's."""
        if isinstance(given, str):
            if given not in self._assistants:
                self._assistants[given] = self._load_assistant(given)
            return self._assistants[given]
        if not isinstance(given, LanguageModel):
            raise InvalidOptionError(
                f"[generate] assistant_model must be a LanguageModel, got {type(given).__name__}; pyllm.load one, or "
                "pass its folder or Hub id"
            )
        self._check_assistant(given)
        return given

    def _load_assistant(self, name: str) -> LanguageModel:
        from .loading import load

        runner: Any = self._open_runner()
        dtype = self.dtype if self.device == "cpu" else "auto"
        model = load(name, dtype=dtype, device=self.device, num_threads=getattr(runner, "num_threads", None))
        try:
            if not isinstance(model, LanguageModel):
                raise InvalidOptionError(
                    f"[generate] assistant_model must be a decoder, {name} is none; name a smaller model of this family"
                )
            self._check_assistant(model)
        except InvalidOptionError:
            model.close()
            raise
        return model

    def _check_assistant(self, model: LanguageModel) -> None:
        """Raises InvalidOptionError unless both have the same tokens: without tokenizers, as many of them."""
        if model is self or model in self._fitting:
            return
        try:
            different = first_difference(self.tokenizer, model.tokenizer)
            differ = None if different is None else f"another token {different}"
        except TokenizerError:
            mine, theirs = self.program.vocab_size, model.program.vocab_size
            differ = None if mine == theirs else f"{theirs} tokens for {mine}"
        if differ is None:
            self._fitting.add(model)
        else:
            raise InvalidOptionError(
                f"[generate] assistant_model must have this model's vocabulary, {model.folder.name} has {differ}; take "
                "a smaller model of the same family, or use prompt_lookup_num_tokens"
            )

    def _checked_prompt(self, where: str, prompt: Prompt) -> list[int]:
        ids = read_prompt(prompt, self._encode, where)
        self._check_ids(where, ids, self.program.vocab_size, self.max_positions)
        return ids

    def _collect(self, where: str, prompt: Prompt, collected: Collected) -> Collected:
        ids = self._checked_prompt(where, prompt)
        with self._session() as engine:
            for _ in engine.score_rows(ids, capture=collected.capture):
                collected.read()
        return collected
