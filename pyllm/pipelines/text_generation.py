"""The text-generation pipeline: transformers' arguments, defaults and return shapes over `LanguageModel`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..decode.options import ALIASES, GenerationOptions
from ..engine.language_model import LanguageModel
from ..engine.results import GeneratedSequence, Generation
from ..errors import InvalidOptionError, PromptError

Record = dict[str, Any]

# transformers 5's defaults of this pipeline, for what neither the call nor generation_config.json sets.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_SAMPLING_DEFAULTS = ("temperature",)

# Options of the pipeline itself; every other one goes to generation.
_OWN = (
    "return_full_text",
    "return_tensors",
    "return_text",
    "stop_sequence",
    "prefix",
    "batch_size",
    "add_special_tokens",
    "skip_special_tokens",
    "clean_up_tokenization_spaces",
)


class TextGenerationPipeline:
    """Continues texts: `generator("Once upon", max_new_tokens=40) -> [{"generated_text": "Once upon a time..."}]`."""

    task = "text-generation"

    def __init__(self, model: LanguageModel, **defaults: Any) -> None:
        self.check_options(defaults)
        self.model = model
        self._defaults = defaults

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError or UnknownOptionError for options no call could take."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every call will warn of what it does not use
            GenerationOptions.build(DEFAULTS, {name: value for name, value in options.items() if name not in _OWN})

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
        merged = {**self._defaults, **options}
        own = {name: merged.pop(name) for name in _OWN if merged.get(name) is not None}
        merged = {name: value for name, value in merged.items() if name not in _OWN}
        if "stop_sequence" in own:
            merged["stop_strings"] = own["stop_sequence"]
        kind = _kind(own)
        generation = self._generation_options(merged)
        if isinstance(text_inputs, str):
            return self._run([text_inputs], generation, own, kind)[0]
        texts = list(text_inputs)
        if not all(isinstance(text, str) for text in texts):
            raise PromptError(
                f"[pipeline] text-generation takes a str or several, got a list with {type(texts[0]).__name__}; "
                "for token ids use LanguageModel.generate, for a chat format it to text first"
            )
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


def _kind(own: Record) -> str:
    """What a record holds: "full" text, "new" text or "tensors". Raises InvalidOptionError for contradictions."""
    asked = [name for name in ("return_full_text", "return_tensors", "return_text") if name in own]
    if len(asked) > 1:
        raise InvalidOptionError(f"[pipeline] {' and '.join(asked)} exclude each other; give one")
    if own.get("clean_up_tokenization_spaces"):
        raise InvalidOptionError(
            "[pipeline] clean_up_tokenization_spaces=True would change the text that was generated; leave it out"
        )
    if own.get("return_tensors"):
        return "tensors"
    return "new" if own.get("return_full_text") is False else "full"
