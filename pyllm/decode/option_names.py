"""Names of the generation options: each with its check, other spellings, and reading values from files and callers.

What the options mean is options.py's; which values contradict each other as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from . import checks

MOST_SEQUENCES = 65536  # of one prompt: a mistyped number must not take the machine's memory
MOST_PROPOSED = 128  # tokens that are proposed at once: as many more rows of every step

# name -> check. The names here are all the options there are.
CHECKS: dict[str, checks.Check] = {
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
    "coverage_penalty": checks.number(0),
    "num_return_sequences": checks.integer(1, MOST_SEQUENCES),
    "return_alternatives": checks.boolean,
    "min_alternative_expansion_prob": checks.number(0, 1),
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
    "encoder_repetition_penalty": checks.number(0, above=True),
    "encoder_no_repeat_ngram_size": checks.integer(0),
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
    "decoder_start_token_id": checks.one_id,
    "seed": checks.integer(),
    "logits_processor": checks.functions,
    "stopping_criteria": checks.functions,
    "prefix_allowed_tokens_fn": checks.function,
    "streamer": checks.streamer,
    "output_scores": checks.boolean,
    "output_logits": checks.boolean,
    "logprobs": checks.logprobs,
    "output_cross_attentions": checks.boolean,
    "return_dict_in_generate": checks.boolean,
    "use_cache": checks.boolean,
    "prompt_lookup_num_tokens": checks.integer(1, MOST_PROPOSED),
    "max_matching_ngram_size": checks.integer(1, 64),
    "assistant_model": checks.assistant,
    "num_assistant_tokens": checks.integer(1, MOST_PROPOSED),
    "num_assistant_tokens_schedule": checks.schedule,
    "assistant_confidence_threshold": checks.number(0, 1),
}

# What a file may not decide: which other model is loaded.
_CALLERS_ONLY = ("assistant_model",)

# Spellings of other packages that mean exactly one of ours.
ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop": "stop_strings",
    "n": "num_return_sequences",
    "repeat_penalty": "repetition_penalty",
    "logit_bias": "sequence_bias",
    "top_logprobs": "logprobs",
    "return_alignments": "output_cross_attentions",
    # CTranslate2's
    "return_attention": "output_cross_attentions",
    "beam_size": "num_beams",
    "num_hypotheses": "num_return_sequences",
    "max_decoding_length": "max_new_tokens",
    "min_decoding_length": "min_new_tokens",
    "sampling_topk": "top_k",
    "sampling_topp": "top_p",
    "sampling_temperature": "temperature",
}

# transformers' options that pyllm lacks and that change the text, with the values at which they do nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "assistant_early_exit": (None,),
    "assistant_ensemble_weight": (None,),
    "use_mtp": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}

# Arguments that other packages take beside the options, None where they are not given, and what to do here.
_ELSEWHERE = {
    "generation_config": "pass its options by name",
    "input_ids": "pass the ids as the first argument",
    "inputs": "pass the text as the first argument",
    "attention_mask": "texts run without padding, leave it out",
    "decoder_input_ids": "pass target_prefix, which an encoder-decoder takes",
    "target_prefix": "it is for encoder-decoders",
    "src_lang": "it is for encoder-decoders",
    "tgt_lang": "it is for encoder-decoders",
    "skip_special_tokens": "a result's text has none, decode its token_ids for them",
    "synced_gpus": "leave it out",
    # CTranslate2's
    "return_scores": "pass output_scores, beams have scores without it",
    "end_token": "pass eos_token_id",
    "suppress_sequences": "pass bad_words_ids",
    "disable_unk": "pass the unknown token in suppress_tokens",
    "callback": "pass streamer, or call stream()",
    "max_batch_size": "one call runs as many texts together as its memory is meant for, leave it out",
    "batch_type": "leave it out",
    "max_input_length": "a text that is too long is refused, leave it out",
    "include_prompt_in_result": "results hold new tokens only, leave it out",
    "patience": "beam search has early_stopping instead",
}


def from_file(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Options of generation_config.json: null is unset, names without effect on the text are passed over."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name in _CALLERS_ONLY and value is not None:
            problems.append(f"generation_config.json: {name} is for callers; remove it from the file")
        elif name in CHECKS and value is not None:
            _take(name, value, values, problems, "generation_config.json: ")
        elif name in _UNSUPPORTED and not _is_idle(name, value):
            problems.append(
                f"generation_config.json: {name}={value!r} changes the text and is not supported; "
                "remove it from the file"
            )
    return values


def from_caller(overrides: Mapping[str, Any], problems: list[str], unknown: list[str]) -> dict[str, Any]:
    """Options of a caller under their own names; None stays None. Appends to `problems` and `unknown`."""
    values: dict[str, Any] = {}
    overrides = _one_by_one(overrides)
    for written, value in overrides.items():
        name = ALIASES.get(written, written)
        if name != written and name in overrides:
            problems.append(f"{written} and {name} are the same option; give one")
        elif name in CHECKS:
            if value is None:
                values[name] = None
            else:
                _take(name, value, values, problems, "", written)
        elif written in _UNSUPPORTED:
            if not _is_idle(written, value):
                problems.append(f"{written}={value!r} is an option of transformers that pyllm lacks; leave it out")
        elif value is not None or written not in _ELSEWHERE:
            near = difflib.get_close_matches(written, [*CHECKS, *ALIASES], n=1, cutoff=0.6)
            hint = f": {_ELSEWHERE[written]}" if written in _ELSEWHERE else ""
            hint = f", did you mean {near[0]!r}?" if near and not hint else hint
            unknown.append(f"there is no option {written!r}{hint}")
    return values


def _one_by_one(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes two spellings that are not one option each: OpenAI's chats ask with logprobs=True beside top_logprobs=k,
    and CTranslate2 draws where sampling_topk is not 1."""
    values = dict(overrides)
    if values.get("logprobs") is True and "top_logprobs" in values:
        del values["logprobs"]
    if "sampling_topk" in values and "do_sample" not in values:
        values["do_sample"] = not (type(values["sampling_topk"]) is int and values["sampling_topk"] == 1)
        if not values["do_sample"]:
            del values["sampling_topk"]
    return values


def _is_idle(name: str, value: Any) -> bool:
    """Whether an unsupported option has a value at which it does nothing. Arrays and objects are never compared."""
    return isinstance(value, (bool, int, float, type(None))) and value in _UNSUPPORTED[name]


def _take(
    name: str, value: Any, values: dict[str, Any], problems: list[str], where: str, written: str | None = None
) -> None:
    try:
        values[name] = CHECKS[name](value)
    except ValueError as error:
        problems.append(f"{where}{written or name} must {error}, got {value!r:.200}")
