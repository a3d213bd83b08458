"""Generation options: transformers' names, defaults and meaning, checked in one place.

`GenerationOptions.build` makes them from the defaults, the model's generation_config.json and what the caller asked
for; everything wrong is reported at once. What the options do is in filters.py, stopping.py and the policies.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ContextLengthError, InvalidOptionError, UnknownOptionError
from . import checks

DEFAULT_NEW_TOKENS = 20  # transformers' default max_length (20), which it counts without the prompt when nobody set it

MOST_SEQUENCES = 65536  # of one prompt: a mistyped number must not take the machine's memory

# name -> check. The names here are all the options there are.
_CHECKS: dict[str, checks.Check] = {
    "max_length": checks.integer(1),
    "max_new_tokens": checks.integer(1),
    "min_length": checks.integer(0),
    "min_new_tokens": checks.integer(0),
    "max_time": checks.number(0, above=True),
    "stop_strings": checks.strings,
    "do_sample": checks.boolean,
    "num_beams": checks.integer(1, MOST_SEQUENCES),
    "num_beam_groups": checks.integer(1),
    "diversity_penalty": checks.number(0),
    "early_stopping": checks.early_stopping,
    "length_penalty": checks.number(-30, 30),  # beyond, length ** penalty leaves the range of floats
    "num_return_sequences": checks.integer(1, MOST_SEQUENCES),
    "temperature": checks.number(0),
    "top_k": checks.integer(0),
    "top_p": checks.number(0, 1),
    "min_p": checks.number(0, 1),
    "top_h": checks.number(0, 1),
    "typical_p": checks.number(0, 1),
    "epsilon_cutoff": checks.number(0, 1),
    "eta_cutoff": checks.number(0, 1),
    "repetition_penalty": checks.number(0, above=True),
    "no_repeat_ngram_size": checks.integer(0),
    "bad_words_ids": checks.id_lists,
    "suppress_tokens": checks.ids,
    "begin_suppress_tokens": checks.ids,
    "forced_bos_token_id": checks.integer(0),
    "forced_eos_token_id": checks.ids,
    "sequence_bias": checks.sequence_bias,
    "exponential_decay_length_penalty": checks.decay,
    "remove_invalid_values": checks.boolean,
    "renormalize_logits": checks.boolean,
    "eos_token_id": checks.end_ids,
    "pad_token_id": checks.integer(),
    "bos_token_id": checks.integer(),
    "seed": checks.integer(),
    "logits_processor": checks.functions,
    "stopping_criteria": checks.functions,
    "prefix_allowed_tokens_fn": checks.function,
    "streamer": checks.streamer,
    "output_scores": checks.boolean,
    "output_logits": checks.boolean,
    "return_dict_in_generate": checks.boolean,
    "use_cache": checks.boolean,
}

# Spellings of other packages that mean exactly one of ours.
ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop": "stop_strings",
    "n": "num_return_sequences",
    "repeat_penalty": "repetition_penalty",
    "logit_bias": "sequence_bias",
}

# transformers' options that pyllm lacks and that change the text, with the values at which they do nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "encoder_no_repeat_ngram_size": (None, 0),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}

_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_LARGEST_K = 2**31 - 1  # no vocabulary is larger, and the search functions take no larger integers
_BEAMS_ONLY = ("early_stopping", "length_penalty")


@dataclass(frozen=True)
class GenerationOptions:
    """Every option of a generation, named as in transformers' GenerationConfig. Make it with `build`.

    Lengths count tokens. `max_length` includes the prompt and `max_new_tokens`, which wins, does not; with neither, 20
    new tokens are generated at most (transformers' default), or what the model's context has room for. Token lists are
    tuples here; empty means none. `given` names what the caller set, as opposed to generation_config.json.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    seed: int | None = None
    logits_processor: tuple[Callable[..., Any], ...] = ()
    stopping_criteria: tuple[Callable[..., Any], ...] = ()
    prefix_allowed_tokens_fn: Callable[..., Any] | None = None
    streamer: Any = None
    output_scores: bool = False
    output_logits: bool = False
    return_dict_in_generate: bool = False
    use_cache: bool = True  # accepted for transformers' sake: the text is the same either way
    given: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def build(
        cls, generation_config: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
    ) -> GenerationOptions:
        """Defaults, overlaid by generation_config.json, overlaid by the caller's options.

        In the file, null means unset and names that transformers does not use for generation are passed over. In
        `overrides`, None turns an option off (`eos_token_id=None`: nothing ends the text, `top_k=None`: no top-k).
        Raises UnknownOptionError (with the nearest name) or InvalidOptionError; either lists all problems.
        """
        problems: list[str] = []
        unknown: list[str] = []
        given = _from_caller(overrides or {}, problems, unknown)
        file = {name: value for name, value in (generation_config or {}).items() if name not in given}
        values = _from_file(file, problems)
        for name, value in given.items():
            values[name] = 0 if value is None and name == "top_k" else value
        if values.get("top_k") is not None:
            values["top_k"] = min(values["top_k"], _LARGEST_K)
        defaults = {item.name: item.default for item in fields(cls)}
        values = {name: defaults[name] if value is None else value for name, value in values.items()}
        options = cls(**values, given=frozenset(given))
        if not problems and not unknown:
            problems += _contradictions(options)
        if problems or unknown:
            count = len(problems) + len(unknown)
            text = f"[generate] {count} problem{'s' * (count > 1)} in the options: " + "; ".join(unknown + problems)
            raise (UnknownOptionError if unknown else InvalidOptionError)(text)
        _warn_unused(options)
        return options

    @property
    def min_tokens_to_keep(self) -> int:
        """Tokens every sampling filter must leave: with beams, one more than there are end tokens (at least 2), so
        that a beam can always go on."""
        return max(2, len(self.eos_token_id) + 1) if self.num_beams > 1 else 1

    def length_limit(self, prompt_length: int, max_positions: int | None = None) -> int:
        """Most tokens a sequence may have, prompt included.

        Raises ContextLengthError when the model's context has no room, InvalidOptionError when max_length is used up by
        the prompt. Warns, as transformers does, when the minimum length cannot be reached.
        """
        if max_positions is not None and prompt_length >= max_positions:
            raise ContextLengthError(
                f"[generate] prompt and new tokens must fit the context, got a prompt of {prompt_length} tokens for a "
                f"context of {max_positions}; shorten the prompt to {max_positions - 1} tokens or fewer"
            )
        if self.max_new_tokens is not None:
            limit = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            limit = self.max_length
        else:
            limit = min(prompt_length + DEFAULT_NEW_TOKENS, max_positions or prompt_length + DEFAULT_NEW_TOKENS)
        if limit <= prompt_length:
            raise InvalidOptionError(
                f"[generate] max_length counts the prompt, got max_length={limit} for a prompt of {prompt_length} "
                "tokens; raise it or use max_new_tokens"
            )
        if max_positions is not None and limit > max_positions:
            raise ContextLengthError(
                f"[generate] prompt and new tokens must fit the context, got {prompt_length} + "
                f"{limit - prompt_length} = {limit} tokens for a context of {max_positions}; "
                f"ask for {max_positions - prompt_length} new tokens or fewer"
            )
        least = max(self.min_length, prompt_length + (self.min_new_tokens or 0))
        if least > limit:
            warnings.warn(f"minimum length {least} is above the maximum {limit}, which wins", UserWarning, stacklevel=2)
        return limit

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises InvalidOptionError naming every token id that lies outside [0, vocab_size). End and suppressed ids
        from generation_config.json may: a model never generates them."""
        used: dict[str, tuple[int, ...]] = {
            "bad_words_ids": tuple(token for word in self.bad_words_ids for token in word),
            "sequence_bias": tuple(token for word, _ in self.sequence_bias for token in word),
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_id": self.forced_eos_token_id,
        }
        used |= {name: getattr(self, name) for name in ("eos_token_id", "suppress_tokens") if name in self.given}
        bad = {name: sorted({token for token in tokens if token >= vocab_size}) for name, tokens in used.items()}
        problems = [f"{name} has {tokens}" for name, tokens in bad.items() if tokens]
        if problems:
            raise InvalidOptionError(
                f"[generate] token ids must lie in [0, {vocab_size}): {'; '.join(problems)}; "
                "use ids of this model's tokenizer"
            )


def _from_file(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Options of generation_config.json: null is unset, names without effect on the text are passed over."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name in _CHECKS and value is not None:
            _take(name, value, values, problems, "generation_config.json: ")
        elif name in _UNSUPPORTED and not _is_idle(name, value):
            problems.append(
                f"generation_config.json: {name}={value!r} changes the text and is not supported; "
                "remove it from the file"
            )
    return values


def _from_caller(overrides: Mapping[str, Any], problems: list[str], unknown: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for written, value in overrides.items():
        name = ALIASES.get(written, written)
        if name != written and name in overrides:
            problems.append(f"{written} and {name} are the same option; give one")
        elif name in _CHECKS:
            if value is None:
                values[name] = None
            else:
                _take(name, value, values, problems, "", written)
        elif written in _UNSUPPORTED:
            if not _is_idle(written, value):
                problems.append(f"{written}={value!r} is an option of transformers that pyllm lacks; leave it out")
        else:
            near = difflib.get_close_matches(written, [*_CHECKS, *ALIASES], n=1, cutoff=0.5)
            unknown.append(f"there is no option {written!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    return values


def _is_idle(name: str, value: Any) -> bool:
    """Whether an unsupported option has a value at which it does nothing. Arrays and objects are never compared."""
    return isinstance(value, (bool, int, float, type(None))) and value in _UNSUPPORTED[name]


def _take(
    name: str, value: Any, values: dict[str, Any], problems: list[str], where: str, written: str | None = None
) -> None:
    try:
        values[name] = _CHECKS[name](value)
    except ValueError as error:
        problems.append(f"{where}{written or name} must {error}, got {value!r:.200}")


def _contradictions(o: GenerationOptions) -> list[str]:
    """Rules over several options, transformers' own unless said."""
    suppressed = set(o.suppress_tokens)
    forced_bos = () if o.forced_bos_token_id is None else (o.forced_bos_token_id,)
    broken = {
        f"num_return_sequences={o.num_return_sequences} needs do_sample=True or num_beams > 1 (one best text exists)": (
            o.num_return_sequences > 1 and o.num_beams == 1 and not o.do_sample
        ),
        f"num_return_sequences={o.num_return_sequences} must be at most num_beams={o.num_beams}": (
            o.num_beams > 1 and o.num_return_sequences > o.num_beams
        ),
        f"num_beams={o.num_beams} must be a multiple of num_beam_groups={o.num_beam_groups}": (
            o.num_beams % o.num_beam_groups != 0
        ),
        "num_beam_groups > 1 excludes do_sample=True": o.num_beam_groups > 1 and o.do_sample,
        "num_beam_groups > 1 needs diversity_penalty > 0, otherwise all groups find the same texts": (
            o.num_beam_groups > 1 and o.diversity_penalty == 0
        ),
        "diversity_penalty needs num_beam_groups > 1": o.num_beam_groups == 1 and o.diversity_penalty > 0,
        "temperature must be > 0 to sample; for the most likely text set do_sample=False": (
            o.do_sample and o.temperature == 0
        ),
        "typical_p must be > 0": o.do_sample and o.typical_p == 0,
        "top_h must be > 0": o.do_sample and o.top_h == 0,
        "forced_bos_token_id is in suppress_tokens": bool(forced_bos) and set(forced_bos) <= suppressed,
        "every forced_eos_token_id is in suppress_tokens": (
            bool(o.forced_eos_token_id) and set(o.forced_eos_token_id) <= suppressed
        ),
        "exponential_decay_length_penalty needs eos_token_id": (
            o.exponential_decay_length_penalty is not None and not o.eos_token_id
        ),
        "streamer needs num_beams=1 and num_return_sequences=1 (beams change until the end)": (
            o.streamer is not None and (o.num_beams > 1 or o.num_return_sequences > 1)
        ),
    }
    return [rule for rule, is_broken in broken.items() if is_broken]


def _warn_unused(o: GenerationOptions) -> None:
    """Options the caller set that cannot have an effect: said aloud, as transformers does, and not an error."""
    defaults = {item.name: item.default for item in fields(o)}
    idle = [] if o.do_sample else [name for name in _SAMPLING_ONLY if name in o.given]
    idle += [] if o.num_beams > 1 else [name for name in _BEAMS_ONLY if name in o.given]
    idle = [name for name in idle if getattr(o, name) != defaults[name] and (name, o.top_k) != ("top_k", 0)]
    if idle:
        cure = "do_sample=True" if idle[0] in _SAMPLING_ONLY else "num_beams > 1"
        warnings.warn(f"{', '.join(idle)} without effect: set {cure}", UserWarning, stacklevel=3)
    if {"max_length", "max_new_tokens"} <= o.given:
        warnings.warn("both max_length and max_new_tokens are set; max_new_tokens wins", UserWarning, stacklevel=3)
