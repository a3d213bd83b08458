"""CudaRunner as a device, on every one at hand (cuda_arrays.py): texts through pyllm.load, memory, threads and forks,
and what it refuses without harm. Its numbers are tested in test_cuda_models.py."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_runner
from conftest import toy_folder
from cuda_arrays import Device
from cuda_runners import chosen_device, on_host, recorded_runner, toy_runner  # noqa: F401
from recorded_programs import Steps, some_ids
from stepping import Stepper, logits_of
from toy_seq2seq import CONFIGS as SEQ2SEQ

import pyllm
from pyllm import errors
from pyllm.devices.cuda import CudaRunner
from pyllm.program.batch import Capture

CALLS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 3, "top_k": 20, "temperature": 1.3, "num_return_sequences": 2},
    {"do_sample": False, "repetition_penalty": 1.3, "prompt_lookup_num_tokens": 2},
]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2_moe", "t5", "bart"])
def test_texts_are_those_of_the_cpu(name: str) -> None:
    gpu, cpu = (pyllm.load(toy_folder(name), dtype="float32", device=device) for device in ("cuda", "cpu"))
    assert gpu.device == "cuda"
    prompts = [[5, 17, 80, 3, 9], [11, 4, 4, 60, 61, 62, 90] * 3]
    for options in CALLS if name not in SEQ2SEQ else CALLS[:3]:
        found, expected = (m.generate(prompts, max_new_tokens=5, min_length=0, **options) for m in (gpu, cpu))
        for one, other in zip(found, expected, strict=True):
            assert [s.token_ids for s in one.sequences] == [s.token_ids for s in other.sequences], options


SUMMARY: dict[str, Any] = {"num_beams": 3, "no_repeat_ngram_size": 3, "forced_eos_token_id": 2, "min_length": 4}
TRANSLATION: dict[str, Any] = {
    "num_beams": 2,
    "bad_words_ids": [[7]],
    "forced_eos_token_id": 2,
    "forced_bos_token_id": 9,
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bart", SUMMARY),
        ("marian", TRANSLATION),
        ("t5", {"suppress_tokens": [4, 9], "begin_suppress_tokens": [11], "prompt_lookup_num_tokens": 3}),
        ("gpt2", {"do_sample": True, "seed": 3, "prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}),
        ("llama", {"assistant_model": "itself", "min_new_tokens": 3, "bad_words_ids": [[5, 17]]}),
    ],
)
def test_logits_stay_on_the_device(name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    gpu, cpu = (pyllm.load(toy_folder(name), dtype="float32", device=device) for device in ("cuda", "cpu"))
    prompts = [[5, 17, 80, 3, 9], [11, 4, 4, 60, 61, 62, 4, 4]]

    def texts(model: Any) -> list[list[int]]:
        own = {"assistant_model": model} if "assistant_model" in options else {}
        found = model.generate(prompts, max_new_tokens=9, **{"do_sample": False, **options, **own})
        return [result.token_ids for result in found]

    with caplog.at_level(logging.DEBUG, "pyllm"):
        found = texts(gpu)
    assert not [record for record in caplog.records if "come from the device" in record.getMessage()]
    assert found == texts(cpu)


class OnDevice:
    """An array as CuPy's are: NumPy can't read it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")


def test_outputs_may_stay_on_the_device(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Generation, scoring, captures, encoders and sources ask the runner for what they read."""
    if not device.emulated:
        pytest.skip("a GPU's arrays are such anyway")
    llama, t5, bert = (pyllm.load(toy_folder(name), dtype="float32", device="cuda") for name in ("llama", "t5", "bert"))
    prompt = [5, 17, 80, 3, 9]

    def results() -> list[Any]:
        text = llama.generate([prompt], max_new_tokens=5, output_hidden_states=True, output_attentions=True)[0]
        return [
            text.sequences[0].token_ids,
            llama.generate([prompt], max_new_tokens=4, num_beams=2, prompt_lookup_num_tokens=None)[0].token_ids,
            llama.generate([prompt], max_new_tokens=6, assistant_model=llama)[0].token_ids,
            llama.score([prompt])[0].logprobs.tolist(),
            t5.generate([prompt], max_new_tokens=4)[0].token_ids,
            bert.forward([prompt])[0].tolist(),
        ]

    expected = results()
    run, rows = CudaRunner.run, CudaRunner.device_rows
    monkeypatch.setattr(CudaRunner, "run", lambda *args, **options: OnDevice(run(*args, **options)))
    monkeypatch.setattr(CudaRunner, "device_rows", lambda self, output: rows(self, output.array))
    assert repr(results()) == repr(expected)


def test_threads_take_turns(device: Device) -> None:
    model = pyllm.load(toy_folder("llama"), dtype="float32", device="cuda")
    prompts = [[5, 17, 80], [7, 8, 9, 10]]
    expected = [model.generate([ids], max_new_tokens=8)[0].sequences[0].token_ids for ids in prompts]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = [model.generate([prompts[i % 2]], max_new_tokens=8)[0].sequences[0].token_ids for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: [expected[i % 2]] * 2 for i in range(3)}


@pytest.mark.parametrize("case", test_runner.WRONG)
def test_wrong_batches_are_those_of_the_cpu(case: str) -> None:
    changes, error, message = test_runner.WRONG[case]
    runner, messages = toy_runner("gpt2"), []
    for each in (runner, test_runner.make_runner("float32")):
        cache = each.new_cache()
        batch = test_runner.batch_of(each, cache)  # type: ignore[arg-type]
        with pytest.raises(error, match=message) as raised:
            each.run(dataclasses.replace(batch, **changes), cache)
        messages.append(str(raised.value))
        assert each.run(batch, cache).shape == (2, 131)
    assert messages[0] == messages[1]


def test_caches_and_names_are_checked() -> None:
    runner = recorded_runner("encoder-decoder")
    with pytest.raises(errors.ArrayError, match="'encode' and 'step', got 'nonsense'"):
        runner.new_cache("nonsense")
    with pytest.raises(errors.ArrayError, match="no cross-attention"):
        recorded_runner("decoder").new_cross_cache()
    steps = Steps(runner)
    steps.encode({"a": [1, 2, 3]})
    with pytest.raises(errors.ArrayError, match="cross_table"):
        steps.step({"x": [1]})
    with pytest.raises(errors.ArrayError, match="'nonsense'"):
        steps.step({"y": [1]}, ["a"], Capture(buffers=("nonsense",)))
    with pytest.raises(errors.ArrayError, match="weights are those of attention"):
        steps.step({"z": [1]}, ["a"], Capture(attentions=("logits",)))
    steps.caches["step"] = runner.new_cache("encode")
    with pytest.raises(errors.ArrayError, match="another model or program"):
        steps.step({"v": [1]}, ["a"])
    cpu = test_runner.make_runner("float32")
    gpt2 = toy_runner("gpt2")
    for one, other in ((gpt2, cpu), (cpu, gpt2)):  # memory of the one is none of the other
        with pytest.raises(errors.ArrayError, match=r"must come from this runner's new_cache"):
            one.run(test_runner.batch_of(one, one.new_cache()), other.new_cache())  # type: ignore[arg-type]


def test_a_limited_cache_refuses_more_and_stays_usable() -> None:
    runner = toy_runner("gpt2")
    size = runner.new_cache().block_bytes
    cache = runner.new_cache(max_bytes=3 * size + 1)
    blocks = [cache.allocate() for _ in range(3)]
    with pytest.raises(errors.OutOfMemoryError, match=f"all 3 blocks of {size} bytes"):
        cache.allocate()
    cache.release(blocks.pop())
    assert cache.references(cache.allocate()) == 1
    assert runner.memory_report()["key_value_cache"] >= cache.bytes > 0


def test_refused_memory_is_an_error_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """For keys and values, outputs, captures, activations and weights: what was asked for, and the model goes on."""
    runner = toy_runner("llama")
    prompt = some_ids(20, 1)
    expected = logits_of(runner, prompt)
    memory = type(runner._memory)
    empty, granted = memory._empty, 0

    def refused(self: Any, count: int) -> Any:
        if count > granted:
            raise MemoryError(count)
        return empty(self, count)

    stepper, steps = Stepper(runner), Steps(runner)
    for cache in (stepper.cache, steps.caches["step"]):
        cache.release(cache.allocate())
    monkeypatch.setattr(memory, "_empty", refused)
    with pytest.raises(errors.OutOfMemoryError, match=r"\[key/value cache\] .* MB of GPU memory were refused \("):
        runner.new_cache().allocate()
    with pytest.raises(errors.OutOfMemoryError, match=r"\[output\] 0.0 MB"):
        stepper.step({"one": prompt})
    with pytest.raises(errors.OutOfMemoryError, match=r"\[weights\]"):
        toy_runner("llama")
    granted = 20 * 192 * 4  # the output
    with pytest.raises(errors.OutOfMemoryError, match=r"\[captures\]"):
        steps.step({"one": prompt}, capture=Capture(tuple(op.out.name for op in runner.program.ops)))
    with pytest.raises(errors.OutOfMemoryError, match=r"\[activations\] [0-9.]* MB"):
        runner._executor.reserve(1 << 20)
    monkeypatch.setattr(memory, "_empty", empty)
    np.testing.assert_array_equal(logits_of(runner, prompt), expected)


def test_options_are_checked() -> None:
    with pytest.raises(errors.InvalidOptionError, match="float8"):
        toy_runner("gpt2", "float8")
    with pytest.raises(errors.DeviceError, match="cuda:7"):
        toy_runner("gpt2", device_index=7)


def test_outputs_that_are_held_stay_valid() -> None:
    """A view outlives its cache, and a larger step that replaces the buffer."""
    runner = toy_runner("gpt2")
    stepper = Stepper(runner)
    first = runner.run(test_runner.batch_of(runner, stepper.cache), stepper.cache)  # type: ignore[arg-type]
    copy = on_host(first)
    stepper.step({str(i): [3] * 30 for i in range(20)})
    del stepper
    np.testing.assert_array_equal(on_host(first), copy)
    none = runner.run(
        dataclasses.replace(
            test_runner.batch_of(runner, cache := runner.new_cache()), logit_rows=np.zeros(0, np.int32)
        ),  # type: ignore[arg-type]
        cache,
    )
    assert none.shape == (0, 131)


def test_a_closed_model_frees_everything() -> None:
    model = pyllm.load(toy_folder("gpt2"), device="cuda")
    model.generate([[1, 2, 3]], max_new_tokens=3)
    report = model.memory_report()
    parameters = sum(int(np.prod(matrix.shape)) for matrix in model.program.matrices())
    assert 4 * parameters <= report["weights"] < 8 * parameters  # padding
    assert min(report["activations"], report["key_value_cache"], report["outputs"], report["pinned_host"]) > 0
    gc.disable()
    try:
        runner, arrays = weakref.ref(model.runner), weakref.ref(model.runner._memory)  # type: ignore[attr-defined]
        model.close()
        assert runner() is None
        assert arrays() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_is_told(tmp_path: Path) -> None:
    runner = toy_runner("gpt2")
    cache = runner.new_cache()
    batch = test_runner.batch_of(runner, cache)  # type: ignore[arg-type]
    if not (child := os.fork()):
        try:
            for use in (lambda: runner.run(batch, cache), runner.new_cache):
                with pytest.raises(errors.DeviceError, match="does not survive fork"):
                    use()
            (tmp_path / "told").touch()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "told").exists()
    assert runner.run(batch, cache).shape == (2, 131)
