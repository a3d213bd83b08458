"""Generation options: defaults, files, aliases, lengths, and every mistake reported at once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from pyllm.decode.options import GenerationOptions
from pyllm.errors import ContextLengthError, InvalidOptionError, UnknownOptionError


def build(**overrides: Any) -> GenerationOptions:
    return GenerationOptions.build({}, overrides)


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig._get_default_generation_params()
    ours = build()
    for name, value in theirs.items():
        if hasattr(ours, name) and name != "max_length":
            assert getattr(ours, name) == (() if value is None and getattr(ours, name) == () else value), name
    assert ours.length_limit(7) == 7 + theirs["max_length"]  # their default counts new tokens


def test_file_then_caller() -> None:
    file = {
        "_from_model_config": True,
        "transformers_version": "4.40.0",
        "eos_token_id": [2, 3, 2],
        "temperature": 0.6,
        "do_sample": True,
        "top_k": None,
        "max_length": 64,
        "use_mtp": False,
        "guidance_scale": 1.0,
    }
    options = GenerationOptions.build(file, {"temperature": 0.9})
    assert (options.eos_token_id, options.temperature, options.top_k) == ((2, 3), 0.9, 50)
    assert options.given == {"temperature"}
    assert options.length_limit(10) == 64
    off = GenerationOptions.build(file, {"eos_token_id": None, "top_k": None, "max_length": None})
    assert (off.eos_token_id, off.top_k, off.length_limit(10)) == ((), 0, 30)


def test_file_with_an_option_that_would_be_lost() -> None:
    with pytest.raises(InvalidOptionError, match=r"generation_config.json: guidance_scale=1.5 .*not supported"):
        GenerationOptions.build({"guidance_scale": 1.5}, {})
    with pytest.raises(InvalidOptionError, match=r"generation_config.json: top_p must be a number in \[0, 1\], got 7"):
        GenerationOptions.build({"top_p": 7}, {})


def test_forms_of_a_value() -> None:
    options = build(
        eos_token_id=np.int64(5),
        sequence_bias={(1, 2): -1, "7": 2.5},
        bad_words_ids=[[1], (2, 3)],
        stop_strings="end",
        logits_processor=[len],
        max_new_tokens=np.int32(4),
        early_stopping="never",
        num_beams=2,
    )
    assert options.eos_token_id == (5,)
    assert options.sequence_bias == (((1, 2), -1.0), ((7,), 2.5))
    assert build(sequence_bias=[[[1, 2], -1.0]]).sequence_bias == (((1, 2), -1.0),)
    assert options.bad_words_ids == ((1,), (2, 3))
    assert (options.stop_strings, options.logits_processor, options.max_new_tokens) == (("end",), (len,), 4)


def test_values_that_are_never_compared() -> None:
    with pytest.raises(InvalidOptionError, match=r"guidance_scale=array"):
        build(guidance_scale=np.ones(2))
    assert build(top_k=10**30, do_sample=True).top_k == 2**31 - 1


def test_the_caller_may_override_what_is_wrong_in_the_file() -> None:
    assert GenerationOptions.build({"top_p": 7}, {"top_p": 0.5, "do_sample": True}).top_p == 0.5


def test_arguments_of_other_packages_are_refused_with_what_to_do() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        build(generation_config={"max_new_tokens": 5}, attention_mask=[[1]], end_token="x")
    for expected in ("'generation_config': pass its options by name", "without padding", "pass eos_token_id"):
        assert expected in str(caught.value)
    assert build(generation_config=None) == build()
    with pytest.raises(UnknownOptionError, match=r"no option 'xyz'$"):
        build(xyz=None)


def test_aliases() -> None:
    options = build(max_tokens=9, stop=["a"], n=2, do_sample=True, repeat_penalty=1.2, logit_bias={3: -2.0})
    assert (options.max_new_tokens, options.stop_strings, options.num_return_sequences) == (9, ("a",), 2)
    assert (options.repetition_penalty, options.sequence_bias) == (1.2, (((3,), -2.0),))
    with pytest.raises(InvalidOptionError, match="max_tokens and max_new_tokens are the same option"):
        build(max_tokens=9, max_new_tokens=9)


def test_spellings_of_openai_and_ctranslate2() -> None:
    assert build().logprobs is None
    assert [build(logprobs=value).logprobs for value in (0, 5, True, False, None)] == [0, 5, 0, None, None]
    assert build(logprobs=True, top_logprobs=4).logprobs == build(top_logprobs=4).logprobs == 4
    with pytest.raises(InvalidOptionError, match="top_logprobs and logprobs are the same option"):
        build(logprobs=2, top_logprobs=4)
    with pytest.raises(InvalidOptionError, match=r"logprobs must be at most the vocabulary's size, got 51 for 50"):
        build(logprobs=51).check_vocabulary(50)
    options = build(beam_size=4, num_hypotheses=3, max_decoding_length=9, min_decoding_length=2, return_attention=True)
    assert (options.num_beams, options.num_return_sequences, options.max_new_tokens) == (4, 3, 9)
    assert (options.min_new_tokens, options.output_cross_attentions) == (2, True)
    drawn = build(sampling_topk=10, sampling_topp=0.8, sampling_temperature=0.5)
    assert (drawn.do_sample, drawn.top_k, drawn.top_p, drawn.temperature) == (True, 10, 0.8, 0.5)
    assert build(sampling_topk=0).top_k == 0
    assert not build(sampling_topk=1).do_sample  # CTranslate2's way to ask for the most likely
    with pytest.raises(InvalidOptionError, match="sampling_topk must be an integer"):
        build(sampling_topk="many")


def test_decoder_start() -> None:
    for value in (7, [7], (np.int64(7),)):
        assert GenerationOptions.build({"decoder_start_token_id": value}, {}).decoder_start_token_id == 7
        assert build(decoder_start_token_id=value).decoder_start_token_id == 7
    assert GenerationOptions.build({"decoder_start_token_id": None}, {}).decoder_start_token_id is None
    for wrong in ([1, 2], [], -1, "2"):
        with pytest.raises(InvalidOptionError, match="decoder_start_token_id must be one token id"):
            build(decoder_start_token_id=wrong)


def test_unknown_name_and_everything_else_at_once() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        build(max_new_token=5, num_beam=2, wobble=1, top_p=1.5, temperature="hot", do_sample=1, guidance_scale=3.0)
    text = str(caught.value)
    assert "7 problems" in text
    assert "no option 'max_new_token', did you mean 'max_new_tokens'?" in text
    assert "no option 'num_beam', did you mean 'num_beams'?" in text
    assert "no option 'wobble'" in text
    assert "top_p must be a number in [0, 1], got 1.5" in text
    assert "temperature must be a number >= 0, got 'hot'" in text
    assert "do_sample must be True or False, got 1" in text
    assert "guidance_scale=3.0" in text
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.0},
        {"num_beams": True},
        {"min_length": -1},
        {"max_time": 0},
        {"repetition_penalty": 0},
        {"length_penalty": float("nan")},
        {"early_stopping": "sometimes"},
        {"bad_words_ids": []},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [3]},
        {"sequence_bias": {(): 1.0}},
        {"sequence_bias": {(1,): "x"}},
        {"eos_token_id": "a"},
        {"suppress_tokens": [-1]},
        {"stop_strings": [""]},
        {"logits_processor": [3]},
        {"streamer": object()},
        {"exponential_decay_length_penalty": (3,)},
        {"exponential_decay_length_penalty": (3, 0.0)},
        {"temperature": 10**400},
        {"sequence_bias": {(5,): 10**400}},
        {"length_penalty": 1e300},
        {"num_beams": 10**9},
        {"num_return_sequences": 10**30},
        {"stop_strings": "\ud800"},
        {"logprobs": -1},
        {"logprobs": 1.0},
        {"coverage_penalty": -0.5},
        {"encoder_repetition_penalty": 0.0},
        {"encoder_no_repeat_ngram_size": -1},
        {"min_alternative_expansion_prob": 1.5, "return_alternatives": True},
    ],
)
def test_single_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=f"{next(iter(wrong))} must"):
        build(**wrong)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"num_return_sequences": 2}, "do_sample=True or num_beams"),
        ({"num_return_sequences": 4, "num_beams": 3}, "at most num_beams=3"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "multiple of num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty > 0"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "excludes do_sample"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "num_beam_groups > 1"),
        ({"do_sample": True, "temperature": 0}, "do_sample=False"),
        ({"suppress_tokens": [4, 5], "forced_eos_token_id": [4, 5]}, "suppress_tokens"),
        ({"exponential_decay_length_penalty": (3, 1.5)}, "needs eos_token_id"),
        ({"return_alternatives": True, "do_sample": True}, "excludes do_sample"),
        ({"return_alternatives": True, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "beam_groups"),
        ({"min_alternative_expansion_prob": 0.1}, "needs return_alternatives"),
    ],
)
def test_contradictions(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidOptionError, match=rule):
        build(**wrong)


def test_what_has_no_effect_is_said() -> None:
    with pytest.warns(UserWarning, match="temperature, top_p without effect: set do_sample=True"):
        build(temperature=0.7, top_p=0.9)
    with pytest.warns(UserWarning, match="length_penalty without effect: set num_beams > 1"):
        build(length_penalty=2.0)
    with pytest.warns(UserWarning, match="coverage_penalty without effect: set num_beams > 1"):
        build(coverage_penalty=0.2)
    with pytest.warns(UserWarning, match="max_new_tokens wins"):
        assert build(max_length=5, max_new_tokens=9).length_limit(10) == 19
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationOptions.build({"temperature": 0.7, "length_penalty": 2.0}, {"top_k": 50})
        build(length_penalty=2.0, return_alternatives=True, num_return_sequences=9)


def test_lengths() -> None:
    assert build().length_limit(10, 1024) == 30
    assert build().length_limit(1020, 1024) == 1024  # the default shrinks to the room there is
    assert build(max_new_tokens=4).length_limit(1020, 1024) == 1024
    with pytest.raises(ContextLengthError, match=r"1020 \+ 5 = 1025 tokens for a context of 1024; ask for 4"):
        build(max_new_tokens=5).length_limit(1020, 1024)
    with pytest.raises(ContextLengthError, match="prompt of 1024 tokens for a context of 1024"):
        build().length_limit(1024, 1024)
    with pytest.raises(InvalidOptionError, match="max_length=8 for a prompt of 8"):
        build(max_length=8).length_limit(8)
    with pytest.warns(UserWarning, match="minimum length 15"):
        build(min_new_tokens=5, max_new_tokens=2).length_limit(10)


def test_ids_outside_the_vocabulary() -> None:
    options = build(bad_words_ids=[[3], [99, 4]], sequence_bias={(100,): 1.0}, eos_token_id=[2, 50])
    with pytest.raises(InvalidOptionError) as caught:
        options.check_vocabulary(50)
    assert "bad_words_ids has [99]; sequence_bias has [100]; eos_token_id has [50]" in str(caught.value)
    GenerationOptions.build({"eos_token_id": [2, 50], "suppress_tokens": [70]}, {}).check_vocabulary(50)
