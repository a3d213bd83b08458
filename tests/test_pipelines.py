"""pipeline("text-generation"): transformers' call and return shapes, defaults and option names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pyllm
from pyllm.errors import InvalidOptionError, PromptError, UnknownOptionError
from pyllm.pipelines.text_generation import TextGenerationPipeline

PROMPT = "The quick brown fox jumps over the lazy"


@pytest.fixture(scope="module")
def generator() -> TextGenerationPipeline:
    return pyllm.pipeline("text-generation")


def test_the_example_runs_word_for_word() -> None:
    from pyllm import pipeline

    generator = pipeline("text-generation", model=str(pyllm.default_model()))
    text = generator("The quick brown fox jumps over the lazy", max_length=50, num_return_sequences=3)
    assert [list(record) for record in text] == [["generated_text"]] * 3
    assert all(record["generated_text"].startswith(PROMPT) for record in text)
    assert len({record["generated_text"] for record in text}) > 1  # sampled


def test_one_text_gives_a_list_and_several_a_list_of_lists(generator: TextGenerationPipeline) -> None:
    options = {"max_new_tokens": 6, "seed": 3}
    one = generator(PROMPT, **options)
    many = generator([PROMPT, "It was"], **options)
    assert [record.keys() for record in one] == [{"generated_text"}]
    assert many[0] == one
    assert many == generator([PROMPT, "It was"], batch_size=1, **options)
    assert many == list(generator((text for text in [PROMPT, "It was"]), **options))
    assert generator([], **options) == []


def test_what_is_returned(generator: TextGenerationPipeline) -> None:
    options = {"max_new_tokens": 8, "do_sample": False}
    full = generator(PROMPT, **options)[0]["generated_text"]
    new = generator(PROMPT, return_full_text=False, **options)[0]["generated_text"]
    ids = generator(PROMPT, return_tensors=True, **options)[0]["generated_token_ids"]
    assert full == PROMPT + new
    assert generator.tokenizer.decode(ids) == full
    assert len(ids) == len(generator.tokenizer.encode(PROMPT)) + 8
    stopped = generator(PROMPT, stop_sequence=new[3:5], **options)[0]["generated_text"]
    assert full.startswith(stopped)
    assert stopped.endswith(new[3:5])
    prefixed = generator("jumps over", prefix="The quick brown fox ", **options)[0]["generated_text"]
    assert prefixed.startswith("jumps over")


def test_an_empty_prompt_is_the_begin_token(generator: TextGenerationPipeline) -> None:
    begin, options = generator.tokenizer.bos_token_id, {"max_new_tokens": 5, "do_sample": False}
    expected = generator.model.generate([begin], **options)
    assert generator(["", "It"], **options)[0] == [{"generated_text": expected.text}]
    assert generator("", return_tensors=True, **options)[0]["generated_token_ids"] == [begin, *expected.token_ids]


def test_defaults_are_those_of_transformers(generator: TextGenerationPipeline) -> None:
    chosen = generator._generation_options({})
    own = generator.model.generation_config["temperature"]
    assert (chosen.max_new_tokens, chosen.do_sample, chosen.temperature) == (256, True, own)
    assert generator._generation_options({"max_length": 50}).max_new_tokens is None
    assert generator._generation_options({"max_tokens": 5}).max_new_tokens == 5
    assert generator._generation_options({"do_sample": False}).do_sample is False


def test_defaults_without_a_generation_config(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(pyllm.default_model(), folder)
    (folder / "generation_config.json").unlink()
    chosen = pyllm.pipeline("text-generation", folder)._generation_options({})
    assert (chosen.max_new_tokens, chosen.do_sample, chosen.temperature) == (256, True, 0.7)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
    assert pyllm.pipeline("text-generation", folder)._generation_options({}).temperature == 0.9
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    chosen = pyllm.pipeline("text-generation", folder)._generation_options({})
    assert (chosen.do_sample, chosen.temperature) == (False, 1.0)


def test_options_given_at_construction_are_defaults_of_each_call() -> None:
    generator = pyllm.pipeline("text-generation", do_sample=False, max_new_tokens=4, dtype="float32")
    assert generator.model.dtype == "float32"
    assert len(generator("It was", return_tensors=True)[0]["generated_token_ids"]) > 4
    assert generator("It was") == generator("It was")


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("text-generaton", {}, InvalidOptionError, "did you mean 'text-generation'"),
        ("no-such-task", {}, InvalidOptionError, "the tasks are text-generation"),
        ("text-generation", {"max_lenght": 5}, UnknownOptionError, "did you mean 'max_length'"),
        ("text-generation", {"dytpe": "float32"}, UnknownOptionError, "did you mean 'dtype'"),
        ("text-generation", {"torch_dtype": "float32"}, UnknownOptionError, "did you mean 'dtype'"),
        ("text-generation", {"return_full_txt": False}, UnknownOptionError, "did you mean 'return_full_text'"),
        ("text-generation", {"batch_size": -1}, InvalidOptionError, "batch_size must be an integer >= 1 or None"),
    ],
)
def test_wrong_construction(task: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyllm.pipeline(task, **options)


def test_wrong_calls(generator: TextGenerationPipeline) -> None:
    with pytest.raises(InvalidOptionError, match="exclude each other"):
        generator("x", return_full_text=True, return_tensors=True)
    with pytest.raises(InvalidOptionError, match="clean_up_tokenization_spaces"):
        generator("x", clean_up_tokenization_spaces=True)
    with pytest.raises(PromptError, match="takes a str, a chat"):
        generator([[1, 2]])
    for inputs in (5, None, b"x", {"x": 1}, ["x", 5]):
        with pytest.raises(PromptError, match=r"or several of these, got (int|None|bytes|dict|a list with int)"):
            generator(inputs)
    with pytest.raises(InvalidOptionError, match="loaded model takes no loading options"):
        pyllm.pipeline("text-generation", generator.model, dtype="float32")


def test_wrong_values_of_its_own_options_are_listed_at_once(generator: TextGenerationPipeline) -> None:
    wrong = {"batch_size": 0, "prefix": 5, "add_special_tokens": 1, "return_full_text": "no"}
    with pytest.raises(InvalidOptionError) as caught:
        generator(["x", "y"], **wrong)
    for expected in ("batch_size must", "prefix must be a str", "add_special_tokens must", "return_full_text must"):
        assert expected in str(caught.value)
    for other in ("stop_strings", "stop"):
        with pytest.raises(InvalidOptionError, match=f"stop_sequence and {other} are the same option"):
            generator("x", stop_sequence="a", **{other: "b"})


def test_a_model_alone_is_no_task() -> None:
    with pytest.raises(InvalidOptionError, match=r"got none \(a model alone does not tell\); name one"):
        pyllm.pipeline(model=pyllm.default_model())
