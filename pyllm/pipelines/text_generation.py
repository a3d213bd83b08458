"""The text-generation pipeline: transformers' arguments, defaults and return shapes over `LanguageModel`.

Prompts are texts, chats (chats.py), or a text with the suffix that is to follow (infilling.py).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from ..decode.options import ALIASES, GenerationOptions
from ..engine.language_model import LanguageModel
from ..engine.results import GeneratedSequence, Generation
from ..errors import InvalidOptionError, PromptError
from ..tokenization import Tokenizer
from . import chats, inputs, own_options
from .infilling import Infiller
from .kinds import require
from .task_pipeline import with_cut

Record = dict[str, Any]

# transformers 5's defaults of this pipeline, for what neither the call nor generation_config.json sets.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_SAMPLING_DEFAULTS = ("temperature",)
_TAKES = (
    "[pipeline] text-generation takes a str, a chat (a list of messages), or several of these, got {}; "
    "for token ids use LanguageModel.generate"
)


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given: a text (with the text that is to follow, or None), or the messages of a chat."""

    given: str | list[chats.Message]
    suffix: str | None = None


@dataclass(frozen=True)
class Call:
    """Everything one call asks for. kind: "full", "new" or "tensors"."""

    own: Record
    kind: str
    generation: GenerationOptions
    infiller: Infiller | None = None


class TextGenerationPipeline:
    """Continues texts: `generator("Once upon", max_new_tokens=40) -> [{"generated_text": "Once upon a time..."}]`."""

    task = "text-generation"

    def __init__(self, model: LanguageModel, **defaults: Any) -> None:
        self.check_options(defaults)
        require(self.task, model, ("decoder",))
        self.model = model
        self._defaults = defaults

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    @staticmethod
    def option_names() -> frozenset[str]:
        """Every option that calls take."""
        return own_options.GENERATION | frozenset(own_options.NAMES)

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError or UnknownOptionError for options no call could take."""
        _, generation = own_options.split(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every call will warn of what it does not use
            GenerationOptions.build(DEFAULTS, generation)

    @overload
    def __call__(self, text_inputs: str | list[Record], **options: Any) -> list[Record]: ...
    @overload
    def __call__(
        self, text_inputs: list[str] | tuple[str, ...] | list[list[Record]], **options: Any
    ) -> list[list[Record]]: ...
    @overload
    def __call__(self, text_inputs: Iterator[Any], **options: Any) -> Iterator[list[Record]]: ...
    @overload
    def __call__(self, text_inputs: Any, **options: Any) -> Any: ...
    def __call__(self, text_inputs: Any, **options: Any) -> Any:
        """Continues one text or chat, or each of several (a list; or a generator, read and answered lazily).

        return_full_text       True (default): "generated_text" is prompt and continuation, for a chat the list of its
                               messages with the model's; False: the continuation's text
        return_tensors         True: "generated_token_ids" (prompt and new tokens, a list of int) instead of text
        stop_sequence          a str or list of them: ends the text, included in it (the same as stop_strings)
        include_stop_str_in_output   False: the text ends before the stop string
        prefix                 text put before every prompt, not returned
        suffix                 the code that is to follow: the model fills in what is between (models that can)
        continue_final_message   chats: go on with the last message; default: if it is the assistant's
        tools, documents       chats: what the template tells the model of
        tokenizer_encode_kwargs   chats: a dict of the template's own variables
        truncation             True (or handle_long_generation="hole"): drop the beginning of a prompt that leaves no
                               room for the new tokens, and say so as record["truncated_tokens"]. Otherwise such a
                               prompt raises ContextLengthError
        add_special_tokens     False: the prompt is tokenized without begin tokens
        skip_special_tokens    False: special tokens stay in the text
        batch_size             prompts run together; None: all of a list. Results don't depend on it
        options                transformers' generate() options (num_return_sequences, max_length, do_sample, ...)

        A prompt without tokens ("") is the begin token, where the model has one.

        Returns a list of num_return_sequences dicts for one prompt, a list of such lists for several. Unless the call
        or generation_config.json says otherwise it samples, at temperature 0.7, up to 256 new tokens or the end of the
        context, as transformers 5 does. Raises what `LanguageModel.generate` raises.
        """
        call = self._prepared_call({**self._defaults, **options})
        if isinstance(text_inputs, str) or chats.is_chat(text_inputs):
            return self._run([self._read(text_inputs, call.own.get("suffix"), call)], call)[0]
        if inputs.is_stream(text_inputs):
            prompts = (self._read(each, call.own.get("suffix"), call) for each in text_inputs)
            return self._results(prompts, call, call.own.get("batch_size") or 1)
        if not isinstance(text_inputs, (list, tuple)):
            raise PromptError(_TAKES.format(type(text_inputs).__name__))
        suffixes = iter(self._suffixes(call, len(text_inputs)))
        read = inputs.read_all(text_inputs, lambda each: self._read(each, next(suffixes), call))
        return list(self._results(read, call, call.own.get("batch_size") or len(read) or 1))

    def _prepared_call(self, options: Record) -> Call:
        own, asked = own_options.split(options)
        generation = self._generation_options(asked)
        if own.get("suffix") is None:
            return Call(own, own_options.kind(own), generation)
        infiller = Infiller.of(self.tokenizer)
        if "eos_token_id" not in generation.given:
            generation = dataclasses.replace(generation, eos_token_id=(*generation.eos_token_id, *infiller.ends))
        return Call(own, own_options.kind(own), generation, infiller)

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

    def _suffixes(self, call: Call, count: int) -> list[str | None]:
        """The suffix of each of a list's prompts. Raises InvalidOptionError unless there are as many."""
        suffix = call.own.get("suffix")
        if not isinstance(suffix, list):
            return [suffix] * count
        if len(suffix) != count:
            raise InvalidOptionError(f"[pipeline] suffix must be one for each prompt, got {len(suffix)} for {count}")
        return list(suffix)

    def _read(self, given: Any, suffix: Any, call: Call) -> Prompt:
        """One prompt. Raises PromptError."""
        if isinstance(suffix, list):
            raise PromptError("[pipeline] suffix as a list goes with a list of prompts, got one; pass a str")
        if isinstance(given, str):
            if chatty := [name for name in own_options.CHATS if name in call.own]:
                raise PromptError(f"[pipeline] {', '.join(chatty)} go with chats, got a str; leave them out")
            return Prompt(given, suffix)
        if not chats.is_chat(given):
            kind = type(given).__name__
            raise PromptError(_TAKES.format(f"a list with {kind}" if isinstance(given, (str, int)) else kind))
        if suffix is not None:
            raise PromptError("[pipeline] suffix goes with texts, got a chat; leave it out")
        return Prompt(chats.checked(given))

    def _results(self, prompts: Any, call: Call, size: int) -> Iterator[list[Record]]:
        for batch in inputs.batches(prompts, size):
            yield from self._run(batch, call)

    def _run(self, prompts: Sequence[Prompt], call: Call) -> list[list[Record]]:
        every = [self._ids(prompt, call) for prompt in prompts]
        cut = [self._excess(ids, call) for ids in every]
        results = self.model.run([ids[count:] for ids, count in zip(every, cut, strict=True)], call.generation)
        return [
            [with_cut(self._record(prompt, result, sequence, call), count) for sequence in result.sequences]
            for prompt, result, count in zip(prompts, results, cut, strict=True)
        ]

    def _ids(self, prompt: Prompt, call: Call) -> list[int]:
        own = call.own
        if not isinstance(prompt.given, str):
            variables: Record = {name: own[name] for name in ("tools", "documents") if name in own}
            variables |= own.get("tokenizer_encode_kwargs", {})
            return chats.ids(self.tokenizer, prompt.given, own.get("continue_final_message"), variables)
        text = own.get("prefix", "") + prompt.given
        if call.infiller is not None and prompt.suffix is not None:
            return call.infiller.prompt(text, prompt.suffix)
        ids = self.tokenizer.encode(text, add_special_tokens=own.get("add_special_tokens", True))
        begin = call.generation.bos_token_id
        begin = self.tokenizer.bos_token_id if begin is None else begin
        return ids if ids or begin is None else [begin]  # as transformers: any text that the model may begin

    def _excess(self, ids: Sequence[int], call: Call) -> int:
        """How many tokens of the beginning the caller lets us drop. Raises PromptError when nothing would be left."""
        new = call.generation.max_new_tokens
        if not (call.own.get("truncation") or call.own.get("handle_long_generation")) or new is None:
            return 0
        room = self.model.max_positions - new
        if len(ids) <= room:
            return 0
        if room < 1 or call.infiller is not None:
            why = "a prompt with a suffix can't be cut" if call.infiller else "ask for fewer new tokens"
            raise PromptError(
                f"[pipeline] a prompt and its new tokens must fit the context, got {len(ids)} + {new} tokens for a "
                f"context of {self.model.max_positions}; {why}"
            )
        return len(ids) - room

    def _record(self, prompt: Prompt, result: Generation, sequence: GeneratedSequence, call: Call) -> Record:
        if call.kind == "tensors":
            return {"generated_token_ids": [*result.prompt_token_ids, *sequence.token_ids]}
        text = self._new_text(result, sequence, call)
        if call.kind == "new":
            return {"generated_text": text}
        if isinstance(prompt.given, str):
            return {"generated_text": prompt.given + text + (prompt.suffix or "")}
        asked = call.own.get("continue_final_message")
        return {"generated_text": chats.answered(prompt.given, asked, text)}

    def _new_text(self, result: Generation, sequence: GeneratedSequence, call: Call) -> str:
        tokens, text = sequence.token_ids, sequence.text
        keep_special = call.own.get("skip_special_tokens") is False
        ends = () if call.infiller is None else call.infiller.ends
        ended = bool(tokens) and tokens[-1] in ends and not keep_special
        if keep_special or ended:
            detokenizer = self.tokenizer.detokenizer(result.prompt_token_ids, skip_special_tokens=not keep_special)
            shown = tokens[:-1] if ended else tokens  # some vocabularies' end of the middle is no special token
            text = "".join([*map(detokenizer.push, shown), detokenizer.finish()])
        if sequence.stop_string is not None and call.own.get("include_stop_str_in_output") is False:
            at = text.find(sequence.stop_string)
            text = text[: max(at, 0)]  # -1: it begins in the prompt, and all that is new belongs to it
        return text
