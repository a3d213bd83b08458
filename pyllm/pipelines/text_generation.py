"""The text-generation pipeline: transformers' arguments, defaults and return shapes over `LanguageModel`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, overload

from ..decode.options import ALIASES, GenerationOptions
from ..engine.language_model import LanguageModel
from ..engine.results import GeneratedSequence, Generation
from ..errors import PromptError
from ..tokenization import Tokenizer
from . import own_options

Record = dict[str, Any]

# transformers 5's defaults of this pipeline, for what neither the call nor generation_config.json sets.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_SAMPLING_DEFAULTS = ("temperature",)
_TAKES = (
    "[pipeline] text-generation takes a str or several, got {}; "
    "for token ids use LanguageModel.generate, for a chat format it to text first"
)


class TextGenerationPipeline:
    """Continues texts: `generator("Once upon", max_new_tokens=40) -> [{"generated_text": "Once upon a time..."}]`."""

    task = "text-generation"

    def __init__(self, model: LanguageModel, **defaults: Any) -> None:
        self.check_options(defaults)
        self.model = model
        self._defaults = defaults

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError or UnknownOptionError for options no call could take."""
        _, generation = own_options.split(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every call will warn of what it does not use
            GenerationOptions.build(DEFAULTS, generation)

    @overload
    def __call__(self, text_inputs: str, **options: Any) -> list[Record]: ...
    @overload
    def __call__(self, text_inputs: Iterable[str], **options: Any) -> list[list[Record]]: ...
    def __call__(self, text_inputs: str | Iterable[str], **options: Any) -> list[Record] | list[list[Record]]:
        """Continues one text, or each of several.

        return_full_text       True (default): "generated_text" is prompt and continuation; False: the continuation
        return_tensors         True: "generated_token_ids" (prompt and new tokens, a list of int) instead of text
        stop_sequence          a str or list of them: ends the text, included in it
        prefix                 text put before every prompt, not returned
        add_special_tokens     False: the prompt is tokenized without begin tokens
        skip_special_tokens    False: special tokens stay in the text
        batch_size             texts run together; None: all. Results don't depend on it
        options                transformers' generate() options (num_return_sequences, max_length, do_sample, ...)

        Returns a list of num_return_sequences dicts for one text, a list of such lists for several. Unless the call or
        generation_config.json says otherwise it samples, at temperature 0.7, up to 256 new tokens or the end of the
        context, as transformers 5 does. Raises what `LanguageModel.generate` raises.
        """
        own, asked = own_options.split({**self._defaults, **options})
        kind = own_options.kind(own)
        generation = self._generation_options(asked)
        if isinstance(text_inputs, str):
            return self._run([text_inputs], generation, own, kind)[0]
        texts = _texts(text_inputs)
        size = own.get("batch_size") or len(texts) or 1
        chunks = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
        return [records for chunk in chunks for records in self._run(chunk, generation, own, kind)]

    def _generation_options(self, asked: dict[str, Any]) -> GenerationOptions:
        config = {name: value for name, value in self.model.generation_config.items() if value is not None}
        given = {ALIASES.get(name, name): value for name, value in asked.items()}
        known = {**config, **given}
        defaults = {name: value for name, value in DEFAULTS.items() if name not in known}
        if "max_length" in known:
            defaults.pop("max_new_tokens", None)
        if not {**known, **defaults}.get("do_sample"):
            defaults = {name: value for name, value in defaults.items() if name not in _SAMPLING_DEFAULTS}
        return GenerationOptions.build({**config, **defaults}, asked)

    def _run(self, texts: Sequence[str], options: GenerationOptions, own: Record, kind: str) -> list[list[Record]]:
        tokenizer = self.model.tokenizer
        special = own.get("add_special_tokens", True)
        prompts = [tokenizer.encode(own.get("prefix", "") + text, add_special_tokens=special) for text in texts]
        results = self.model.run(prompts, options)
        return [
            [self._record(text, result, sequence, own, kind) for sequence in result.sequences]
            for text, result in zip(texts, results, strict=True)
        ]

    def _record(self, prompt: str, result: Generation, sequence: GeneratedSequence, own: Record, kind: str) -> Record:
        if kind == "tensors":
            return {"generated_token_ids": [*result.prompt_token_ids, *sequence.token_ids]}
        text = sequence.text
        if own.get("skip_special_tokens") is False:
            detokenizer = self.model.tokenizer.detokenizer(result.prompt_token_ids, skip_special_tokens=False)
            text = "".join([*map(detokenizer.push, sequence.token_ids), detokenizer.finish()])
        return {"generated_text": prompt + text if kind == "full" else text}


def _texts(inputs: Iterable[str]) -> list[str]:
    """The texts of a list, tuple or generator. Raises PromptError for anything else."""
    if not isinstance(inputs, Iterable) or isinstance(inputs, (bytes, bytearray, Mapping, Set)):
        raise PromptError(_TAKES.format(type(inputs).__name__))
    texts = list(inputs)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(_TAKES.format(f"a list with {type(text).__name__}"))
    return texts
