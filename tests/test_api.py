"""The public API: prompts, options, results, streaming, errors; several threads, forks and damaged weights."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import multiprocessing
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import recorded_logits, toy_folder
from safetensors.numpy import load_file, save_file

import pyllm
from pyllm.errors import (
    ContextLengthError,
    DeviceError,
    InvalidConfigError,
    InvalidOptionError,
    ModelNotFoundError,
    NumericError,
    OutOfMemoryError,
    PromptError,
    PyllmError,
    TokenizerError,
    UnknownOptionError,
)

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model() -> Iterator[pyllm.LanguageModel]:
    with pyllm.load(pyllm.default_model()) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def toy() -> Iterator[pyllm.LanguageModel]:
    with pyllm.load(toy_folder("gpt2")) as loaded:
        yield loaded


def test_one_prompt_gives_one_result_and_a_list_gives_a_list(model: pyllm.LanguageModel) -> None:
    ids = model.tokenizer.encode("The prince")
    one = model.generate("The prince", **GREEDY)
    assert isinstance(one, pyllm.Generation)
    assert one.prompt_token_ids == ids
    assert one.prompt_tokens == len(ids)
    assert len(one.token_ids) == 12
    assert one.finish_reason == "length"
    assert one.seed is None
    assert one.score is None
    assert one.text == model.tokenizer.decode([*ids, *one.token_ids])[len("The prince") :]
    for prompt in (ids, np.array(ids)):
        assert model.generate(prompt, **GREEDY) == one
    for prompts in (
        ["The prince", "It"],
        [ids, model.tokenizer.encode("It")],
        ["The prince", model.tokenizer.encode("It")],
    ):
        many = model.generate(prompts, **GREEDY)
        assert many[0] == one
        assert len(many) == 2


def test_prompts_may_be_any_librarys_arrays_of_ids(model: pyllm.LanguageModel) -> None:
    torch = pytest.importorskip("torch")
    ids = model.tokenizer.encode("The prince of the")
    expected = model.generate(ids, **GREEDY)
    assert model.generate(torch.tensor(ids), **GREEDY) == expected
    assert model.generate(torch.tensor([ids, ids]), **GREEDY) == [expected, expected]
    assert model.generate([torch.tensor(ids), ids[:2]], **GREEDY)[0] == expected
    with pytest.raises(PromptError, match="token ids"):
        model.generate(torch.tensor([1.0, 2.0]), **GREEDY)


def test_generation_config_applies_and_options_override_it(model: pyllm.LanguageModel) -> None:
    sampled = model.generate("The prince", max_new_tokens=12)
    assert model.generation_config["do_sample"] is True
    assert sampled.seed is not None
    assert model.generate("The prince", max_new_tokens=12, seed=sampled.seed) == sampled


def test_config_json_stands_in_for_a_missing_generation_config(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("gpt2"), folder)
    (folder / "generation_config.json").unlink()
    first = pyllm.load(folder).generate([5, 6, 7], max_new_tokens=1).token_ids[0]
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": first}
    (folder / "config.json").write_text(json.dumps(config))
    result = pyllm.load(folder).generate([5, 6, 7], max_new_tokens=9)
    assert (result.token_ids, result.finish_reason) == ([first], "stop")


def test_samples_of_one_prompt_differ_and_do_not_depend_on_company(model: pyllm.LanguageModel) -> None:
    alone = model.generate("The prince", max_new_tokens=12, seed=9, num_return_sequences=3)
    batched = model.generate(["It was", "The prince"], max_new_tokens=12, seed=9, num_return_sequences=3)
    assert batched[1] == alone
    assert len({sequence.text for sequence in alone.sequences}) == 3


def test_many_prompts_queue_for_their_turn(model: pyllm.LanguageModel) -> None:
    prompts = [[n % 500 + 1] * (n % 7 + 1) for n in range(150)]
    results = model.generate(prompts, do_sample=False, max_new_tokens=2)
    assert [r.prompt_token_ids for r in results] == prompts
    assert results[149] == model.generate(prompts[149], do_sample=False, max_new_tokens=2)


def test_stream_pieces_join_to_the_text(model: pyllm.LanguageModel) -> None:
    stream = model.stream("The prince", seed=4, max_new_tokens=40)
    with pytest.raises(InvalidOptionError, match="last piece"):
        _ = stream.result
    pieces = list(stream)
    assert all(pieces)
    assert len(pieces) > 20
    assert "".join(pieces) == stream.result.text
    assert stream.result == model.generate("The prince", seed=4, max_new_tokens=40)


def test_an_abandoned_stream_leaves_the_model_usable(model: pyllm.LanguageModel) -> None:
    stream = model.stream("The prince", max_new_tokens=40)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert model.generate("The prince", **GREEDY).finish_reason == "length"


class Recording:
    """A streamer in transformers' protocol."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.values: list[np.ndarray] = []
        self.ended = False
        self.interrupt_after = interrupt_after

    def put(self, value: np.ndarray) -> None:
        self.values.append(value)
        if self.interrupt_after is not None and len(self.values) > self.interrupt_after:
            raise KeyboardInterrupt

    def end(self) -> None:
        self.ended = True


def test_streamer_protocol(model: pyllm.LanguageModel) -> None:
    streamer = Recording()
    result = model.generate("The prince", streamer=streamer, **GREEDY)
    assert streamer.ended
    assert streamer.values[0].tolist() == [result.prompt_token_ids]
    assert [value.tolist() for value in streamer.values[1:]] == [[token] for token in result.token_ids]


def test_control_c_in_the_middle_leaves_the_model_usable(model: pyllm.LanguageModel) -> None:
    streamer = Recording(interrupt_after=5)
    with pytest.raises(KeyboardInterrupt):
        model.generate("The prince", streamer=streamer, **GREEDY)
    assert len(streamer.values) == 6
    assert not streamer.ended
    again = model.generate("The prince", **GREEDY)
    assert again.token_ids[:5] == [int(value[0]) for value in streamer.values[1:]]


def test_output_logits_and_scores(toy: pyllm.LanguageModel) -> None:
    prompt, _ = recorded_logits("gpt2")[1]
    result = toy.generate(prompt, output_logits=True, output_scores=True, repetition_penalty=1.5, **GREEDY)
    assert result.logits is not None
    assert result.scores is not None
    steps = len(result.token_ids)
    assert result.logits.shape == result.scores.shape == (steps, toy.program.vocab_size)
    assert result.scores.argmax(axis=1).tolist() == result.token_ids
    everything = toy.logits([*prompt, *result.token_ids])
    assert np.array_equal(result.logits, everything[len(prompt) - 1 : len(prompt) - 1 + steps])
    beams = toy.generate(prompt, output_logits=True, num_beams=4, max_new_tokens=6)
    assert beams.logits is not None
    assert np.array_equal(beams.logits, toy.logits([*prompt, *beams.token_ids])[len(prompt) - 1 : -1])


def test_logits_equal_transformers(toy_model: str) -> None:
    with pyllm.load(toy_folder(toy_model), dtype="float32") as loaded:
        for prompt, expected in recorded_logits(toy_model):
            logits = loaded.logits(prompt)
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_the_reference_device_agrees(toy: pyllm.LanguageModel) -> None:
    prompt, _ = recorded_logits("gpt2")[1]
    with pyllm.load(toy_folder("gpt2"), device="reference") as reference:
        assert reference.generate(prompt, **GREEDY).token_ids == toy.generate(prompt, **GREEDY).token_ids


def test_dtype_auto_is_the_checkpoints_own() -> None:
    found = {name: pyllm.load(toy_folder(name)).dtype for name in ("gpt2", "gpt2-untied", "mistral")}
    assert found == {"gpt2": "float32", "gpt2-untied": "bfloat16", "mistral": "bfloat16"}  # stored F32, F16, BF16


def test_program_and_memory_report(model: pyllm.LanguageModel) -> None:
    assert "logits" in str(model.program)
    report = model.memory_report()
    assert all(size >= 0 for size in report.values())
    assert sum(report.values()) > 4_000_000


def test_a_model_without_tokenizer_takes_ids(toy: pyllm.LanguageModel) -> None:
    result = toy.generate([5, 6, 7], max_new_tokens=3)
    assert len(result.token_ids) == 3
    with pytest.raises(TokenizerError):
        _ = result.text
    with pytest.raises(TokenizerError):
        toy.generate("text")


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", PromptError, "at least one token"),
        ([], PromptError, "at least one token"),
        ([5, 2048, -1], PromptError, r"\[-1, 2048\]"),
        ([[5], []], PromptError, "prompt 1: .*at least one token"),
        (5, PromptError, "got int"),
        ([5, "x"], PromptError, "a list of token ids"),
        ([1] * 512, ContextLengthError, "512 tokens for a context of 512"),
        ([1] * 600, ContextLengthError, "600 tokens for a context of 512"),
    ],
)
def test_prompts_that_cannot_run(model: pyllm.LanguageModel, prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate(prompt, **GREEDY)


def test_lengths_end_at_the_context_unless_asked_for(model: pyllm.LanguageModel) -> None:
    result = model.generate([1] * 500, do_sample=False, eos_token_id=None)
    assert len(result.token_ids) == 12
    assert result.finish_reason == "length"
    with pytest.raises(ContextLengthError, match=r"500 \+ 13 = 513 tokens for a context of 512"):
        model.generate([1] * 500, max_new_tokens=13)
    assert model.logits([1] * 512).shape == (512, 2048)
    with pytest.raises(ContextLengthError, match="513 tokens for a context of 512"):
        model.logits([1] * 513)
    with pytest.raises(PromptError, match="2048"):
        model.logits([2048])


def test_wrong_options(model: pyllm.LanguageModel) -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'max_new_tokens'"):
        model.generate("x", max_new_token=4)
    with pytest.raises(InvalidOptionError, match="num_beams must be 1"):
        model.stream("x", num_beams=2)
    with pytest.raises(PromptError, match="one text at a time"):
        model.stream(["x", "y"])
    with pytest.raises(InvalidOptionError, match="a streamer takes one prompt"):
        model.generate(["x", "y"], streamer=Recording())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dytpe": "float32"}, UnknownOptionError, "did you mean 'dtype'"),
        (
            {"dtype": "float8"},
            InvalidOptionError,
            "auto, float32, bfloat16, float16, float32-bf16x3, got 'float8'",
        ),
        ({"quantization": "int3", "num_threads": 0}, InvalidOptionError, "quantization must be None or .*num_threads"),
        ({"kv_cache": "int4"}, InvalidOptionError, "kv_cache must be None or one of float32, bfloat16, float16, int8"),
        ({"quantization": "int4z"}, InvalidOptionError, "int8, int8-fast, int4, int4-g128, got 'int4z'"),
        ({"device": "reference", "kv_cache": "int8"}, InvalidOptionError, "own weights in float64"),
        ({"load_in_8bit": True}, InvalidOptionError, 'pass quantization="int8"'),
        ({"load_in_4bit": True}, InvalidOptionError, 'pass quantization="int4"'),
        ({"quantization_config": {}}, InvalidOptionError, 'pass quantization="int8" or "int4"'),
        ({"quantisation": "int8"}, UnknownOptionError, "did you mean 'quantization'"),
        ({"device": "tpu"}, InvalidOptionError, "auto, cpu, cuda, reference"),
        ({"device": "cuda:x"}, InvalidOptionError, "a GPU by number"),
        ({"device": "cuda", "num_threads": 2}, InvalidOptionError, "num_threads is for the processor"),
        ({"device": "cuda:9999"}, DeviceError, "cuda"),  # where there are GPUs: not so many
        ({"num_threads": 10**30}, InvalidOptionError, "num_threads must be a positive number"),
        ({"dtype": np.array(["float32", "x"]), "device": [1]}, InvalidOptionError, "dtype must be .*device must be"),
    ],
)
def test_wrong_load_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyllm.load(pyllm.default_model(), **options)


@pytest.mark.parametrize("name", [None, 5, ["folder"], b"folder", "", "x" * 5000, "x" * 300, "x" * 300 + "/y", "a\0b"])
def test_wrong_model_names(name: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="folder or a Hub id like 'org/name'"):
        pyllm.load(name)


def test_numbers_may_be_numpys() -> None:
    with pyllm.load(toy_folder("gpt2"), num_threads=np.int64(1)) as loaded:
        assert loaded.generate([5], max_new_tokens=np.int64(2)).finish_reason == "length"


def test_a_generation_config_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("gpt2"), folder)
    path = folder / "generation_config.json"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        pyllm.load(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        pyllm.load(folder)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        pyllm.load(tmp_path / "nowhere")
    with pytest.raises(PyllmError, match=r"config\.json"):
        pyllm.load(tmp_path)


def test_damaged_weights_are_a_numeric_error(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(toy_folder("gpt2"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pyllm.load(folder) as damaged:
        for options in ({}, {"num_beams": 3}, {"do_sample": True}):
            with pytest.raises(NumericError, match="NaN"):
                damaged.generate([5, 6, 7], max_new_tokens=4, **options)


def test_refused_memory_is_an_out_of_memory_error(toy: pyllm.LanguageModel) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    expected = toy.generate([5], **GREEDY)
    with pytest.raises(OutOfMemoryError, match="9 TiB"):
        toy.generate([5], logits_processor=refuse, **GREEDY)
    assert toy.generate([5], **GREEDY) == expected


def test_a_closed_model_says_so() -> None:
    loaded = pyllm.load(toy_folder("gpt2"))
    loaded.close()
    for call in (loaded.generate, loaded.stream, loaded.logits):
        with pytest.raises(PyllmError, match="closed"):
            call([5])


def test_a_stream_says_at_once_that_there_is_no_tokenizer(toy: pyllm.LanguageModel) -> None:
    with pytest.raises(TokenizerError):
        toy.stream([5, 6])


@pytest.mark.parametrize("damaged", ["{", None], ids=["damaged", "absent"])
def test_ids_need_no_tokenizer_until_text_is_asked_for(
    model: pyllm.LanguageModel, tmp_path: Path, damaged: str | None
) -> None:
    ids = model.tokenizer.encode("The prince")
    expected = model.generate(ids, **GREEDY)
    folder = shutil.copytree(pyllm.default_model(), tmp_path / "model")
    whole = (folder / "tokenizer.json").read_bytes()
    if damaged is None:
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_text(damaged)
    with pyllm.load(folder) as loaded:
        first, second = (loaded.generate(ids, **GREEDY) for _ in range(2))
        assert first == expected
        assert first.token_ids == expected.token_ids
        for result in (first, pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
            with pytest.raises(TokenizerError, match="tokenizer"):
                _ = result.text
            assert "GeneratedSequence(token_ids=" in repr(result)
        with pytest.raises(TokenizerError):
            loaded.generate(ids, stop_strings=["x"], **GREEDY)
        (folder / "tokenizer.json").write_bytes(whole)
        assert second.text == expected.text  # nobody had asked it before


def test_copies_of_a_result_have_its_text(model: pyllm.LanguageModel) -> None:
    result = model.generate("The prince", **GREEDY).sequences[0]
    text = model.generate("The prince", **GREEDY).text
    assert dataclasses.asdict(result)["_text"] == text
    for again in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
        assert again == result
        assert again.text == text
    assert dataclasses.replace(result, score=1.0).text == text
    assert repr(result).startswith(f"GeneratedSequence({text!r}, token_ids=")


def test_a_result_keeps_no_weights() -> None:
    loaded = pyllm.load(pyllm.default_model())
    expected = loaded.generate([5, 6], **GREEDY).text
    result, weights = loaded.generate([5, 6], **GREEDY), weakref.ref(loaded.runner)
    del loaded
    gc.collect()
    assert weights() is None
    assert result.text == expected


def test_a_model_cannot_be_pickled_and_says_what_to_do(toy: pyllm.LanguageModel) -> None:
    with pytest.raises(TypeError, match=r"\[model\] .*pickled.*pyllm\.load"):
        pickle.dumps(toy)
    result = toy.generate([5, 6], max_new_tokens=2, output_logits=True)
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert np.array_equal(again.logits, result.logits)


def test_two_threads_generate_on_one_model(model: pyllm.LanguageModel) -> None:
    prompts = ["The prince", "It was", "Once", "She said"]
    expected = [model.generate(prompt, seed=1, max_new_tokens=30) for prompt in prompts]
    found: dict[str, pyllm.Generation] = {}

    def work(mine: list[str]) -> None:
        for prompt in mine:
            found[prompt] = model.generate(prompt, seed=1, max_new_tokens=30)

    threads = [threading.Thread(target=work, args=(prompts[n::2],)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [found[prompt] for prompt in prompts] == expected


@pytest.mark.cpu_only("a GPU's model does not survive fork, which test_cuda_runner.py shows")
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_after_load_generates_the_same(model: pyllm.LanguageModel) -> None:
    expected = model.generate("The prince", **GREEDY).token_ids
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(model.generate("The prince", **GREEDY).token_ids))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert queue.get() == expected
    assert model.generate("The prince", **GREEDY).token_ids == expected
