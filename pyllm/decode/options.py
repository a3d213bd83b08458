"""Generation options: transformers' names, defaults and meaning, checked in one place.

`GenerationOptions.build` makes them from the defaults, the model's generation_config.json and what the caller asked
for; everything wrong is reported at once. What the options do is in filters.py, stopping.py and the policies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ContextLengthError, InvalidOptionError, UnknownOptionError
from .option_names import ALIASES as ALIASES  # other rooms look spellings up here
from .option_names import MOST_PROPOSED, from_caller, from_file

DEFAULT_NEW_TOKENS = 20  # transformers' default max_length (20), which it counts without the prompt when nobody set it

_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_LARGEST_K = 2**31 - 1  # no vocabulary is larger, and the search functions take no larger integers
_NEEDED_BY = {
    "prompt_lookup_num_tokens": ("max_matching_ngram_size",),
    "assistant_model": (
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
    ),
}
_BEAMS_ONLY = ("early_stopping", "length_penalty", "coverage_penalty")


@dataclass(frozen=True)
class GenerationOptions:
    """Every option of a generation, named as in transformers' GenerationConfig. Make it with `build`.

    Lengths count tokens. `max_length` includes the prompt and `max_new_tokens`, which wins, does not; with neither, 20
    new tokens are generated at most (transformers' default), or what the model's context has room for. Token lists are
    tuples here; empty means none. `given` names what the caller set, as opposed to generation_config.json.

    Beyond transformers' (which has the options of `return_alternatives` and `coverage_penalty` nowhere):

    logprobs              k: for each new token its log-probability as the network gave it, before any filter, and those
                          of the k most likely tokens; 0: the new token's alone; None: nothing
    coverage_penalty      beams: b * sum over the source's positions of log(min(attention it got, 1)) is added to the
                          score of a sequence that ends (Wu et al. 2016, eq. 14; see beam.coverage); b >= 0
    return_alternatives   num_return_sequences different next tokens, each completed by itself (alternatives.py), but
                          for those less likely than min_alternative_expansion_prob
    output_cross_attentions   the attention to the source that each new token was chosen with

    Speculation (engine/speculation.py) is transformers', with two differences: num_assistant_tokens_schedule
    "heuristic" starts anew with each sequence, and assistant_confidence_threshold (0: off) stays as it is.
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
    coverage_penalty: float = 0.0
    num_return_sequences: int = 1
    return_alternatives: bool = False
    min_alternative_expansion_prob: float = 0.0
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
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram_size: int = 0
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
    decoder_start_token_id: int | None = None
    seed: int | None = None
    logits_processor: tuple[Callable[..., Any], ...] = ()
    stopping_criteria: tuple[Callable[..., Any], ...] = ()
    prefix_allowed_tokens_fn: Callable[..., Any] | None = None
    streamer: Any = None
    output_scores: bool = False
    output_logits: bool = False
    logprobs: int | None = None
    output_cross_attentions: bool = False
    return_dict_in_generate: bool = False
    use_cache: bool = True  # accepted for transformers' sake: the text is the same either way
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 2
    assistant_model: Any = None  # a LanguageModel, or a str that pyllm.load takes
    num_assistant_tokens: int = 20
    num_assistant_tokens_schedule: str = "constant"
    assistant_confidence_threshold: float = 0.4
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
        given = from_caller(overrides or {}, problems, unknown)
        file = {name: value for name, value in (generation_config or {}).items() if name not in given}
        values = from_file(file, problems)
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
    def speculates(self) -> bool:
        """Whether tokens are proposed, for a step to check several of them."""
        return self.prompt_lookup_num_tokens is not None or self.assistant_model is not None

    @property
    def most_proposed(self) -> int:
        """Tokens proposed at once at most; 0 without speculation."""
        if self.prompt_lookup_num_tokens is not None:
            return self.prompt_lookup_num_tokens
        if self.assistant_model is None:
            return 0
        return self.num_assistant_tokens if self.num_assistant_tokens_schedule == "constant" else MOST_PROPOSED

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
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise InvalidOptionError(
                f"[generate] logprobs must be at most the vocabulary's size, got {self.logprobs} for {vocab_size} "
                "tokens; ask for fewer"
            )
        bad = {name: sorted({token for token in tokens if token >= vocab_size}) for name, tokens in used.items()}
        problems = [f"{name} has {tokens}" for name, tokens in bad.items() if tokens]
        if problems:
            raise InvalidOptionError(
                f"[generate] token ids must lie in [0, {vocab_size}): {'; '.join(problems)}; "
                "use ids of this model's tokenizer"
            )


def _contradictions(o: GenerationOptions) -> list[str]:
    """Rules over several options, transformers' own unless said."""
    suppressed = set(o.suppress_tokens)
    forced_bos = () if o.forced_bos_token_id is None else (o.forced_bos_token_id,)
    broken = {
        f"num_return_sequences={o.num_return_sequences} needs do_sample=True or num_beams > 1 (one best text exists)": (
            o.num_return_sequences > 1 and o.num_beams == 1 and not o.do_sample and not o.return_alternatives
        ),
        f"num_return_sequences={o.num_return_sequences} must be at most num_beams={o.num_beams}": (
            o.num_beams > 1 and o.num_return_sequences > o.num_beams and not o.return_alternatives
        ),
        "return_alternatives excludes do_sample=True (each is completed by greedy or beam search)": (
            o.return_alternatives and o.do_sample
        ),
        "return_alternatives excludes num_beam_groups > 1": o.return_alternatives and o.num_beam_groups > 1,
        "min_alternative_expansion_prob needs return_alternatives=True": (
            o.min_alternative_expansion_prob > 0 and not o.return_alternatives
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
        "prompt_lookup_num_tokens and assistant_model exclude each other": (
            o.prompt_lookup_num_tokens is not None and o.assistant_model is not None
        ),
        f"{_proposer(o)} needs num_beams=1 (beams have no one next token to propose)": o.speculates and o.num_beams > 1,
        f"{_proposer(o)} excludes return_alternatives": o.speculates and o.return_alternatives,
        f"{_proposer(o)} excludes output_cross_attentions": o.speculates and o.output_cross_attentions,
    }
    return [rule for rule, is_broken in broken.items() if is_broken]


def _proposer(o: GenerationOptions) -> str:
    return "assistant_model" if o.assistant_model is not None else "prompt_lookup_num_tokens"


def _warn_unused(o: GenerationOptions) -> None:
    """Options the caller set that cannot have an effect: said aloud, as transformers does, and not an error."""
    defaults = {item.name: item.default for item in fields(o)}
    idle = [] if o.do_sample else [name for name in _SAMPLING_ONLY if name in o.given]
    beams_only = set(_BEAMS_ONLY) - ({"length_penalty"} if o.return_alternatives else set())
    idle += [] if o.num_beams > 1 else [name for name in _BEAMS_ONLY if name in o.given & beams_only]
    idle = [name for name in idle if getattr(o, name) != defaults[name] and (name, o.top_k) != ("top_k", 0)]
    if idle:
        cure = "do_sample=True" if idle[0] in _SAMPLING_ONLY else "num_beams > 1"
        warnings.warn(f"{', '.join(idle)} without effect: set {cure}", UserWarning, stacklevel=3)
    for needed, names in _NEEDED_BY.items():
        alone = [name for name in names if name in o.given and getattr(o, name) != defaults[name]]
        if getattr(o, needed) is None and alone:
            warnings.warn(f"{', '.join(alone)} without effect: set {needed}", UserWarning, stacklevel=3)
    if {"max_length", "max_new_tokens"} <= o.given:
        warnings.warn("both max_length and max_new_tokens are set; max_new_tokens wins", UserWarning, stacklevel=3)
