"""CudaRunner: whole networks on every device at hand (cuda_arrays.py), against the float64 oracle, recorded outputs of
transformers, and bitwise against itself when padding, neighbours, captures and beams differ."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_runner
from conftest import recorded_logits, toy_folder
from cuda_arrays import Device
from recorded_programs import RandomTensors, Steps, some_ids
from stepping import Stepper, logits_of
from stepping_seq2seq import outputs_of
from test_cpu_programs import NETWORKS, assert_near, make_reference, whole_story
from test_encoders import recorded as recorded_texts
from test_quantization import Dequantized
from test_seq2seq import recorded as recorded_pairs
from toy_encoders import ENCODERS
from toy_seq2seq import CONFIGS as SEQ2SEQ

import pyllm
from pyllm import errors
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.cuda import CudaRunner
from pyllm.devices.reference import ReferenceRunner
from pyllm.engine.encoder_model import EncoderModel
from pyllm.models import bind, network_of
from pyllm.program.batch import Capture
from pyllm.program.program import Attention, CrossAttention, StoreCross

FLOAT32_TOLERANCE = 1e-4  # as in test_models.py: sums of up to 100 terms through a few layers
# Of the root of the mean square of all outputs: a dozen roundings of 2^-9 between a token and its logits.
BFLOAT16_RELATIVE = 2e-2
FLOAT16_RELATIVE = 8e-3  # 2^-12; outputs of few numbers may be off by more than their share
# Of integer weights the products are exact to the 16 bits of activations.
QUANTIZED_TOLERANCE = 1e-3
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def chosen(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """device="cuda" means the one that is tested."""
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1" if device.emulated else "0")
    return device


def recorded_runner(name: str, dtype: str = "float32", **options: Any) -> CudaRunner:
    network = NETWORKS[name]()
    return CudaRunner(network, RandomTensors(network), dtype=dtype, **options)


def toy_runner(name: str, dtype: str = "float32", **options: Any) -> CudaRunner:
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        return CudaRunner(network, bind(network, checkpoint), dtype=dtype, **options)


def on_host(rows: Any) -> np.ndarray:
    return np.array(rows) if isinstance(rows, np.ndarray) else rows.get()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The root of the mean square of the difference, of that of what is expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


# ---------------------------------------------------------------------------------------------------- every operation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_against_the_oracle(name: str, dtype: str) -> None:
    found = whole_story(recorded_runner(name, dtype))
    expected = whole_story(make_reference(name, "bfloat16" if dtype == "bfloat16" else "float32"))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert np.abs(other).max() > 0.1
        if dtype == "float16":
            assert relative(one, other) < FLOAT16_RELATIVE, f"text {i}"
        else:
            assert_near(one, other, dtype, f"text {i}")


@pytest.mark.parametrize("kv_cache", ["bfloat16", "float16", "int8"])
def test_narrow_keys_and_values(kv_cache: str) -> None:
    plain, found = recorded_runner("decoder"), recorded_runner("decoder", kv_cache=kv_cache)
    stories = []
    for runner in (plain, found):
        steps = Steps(runner)
        stories.append(steps.step({"x": some_ids(40, 4), "y": [5]}) + steps.step({"x": [3], "y": [4]}))
    differences = [relative(one, other) for one, other in zip(*stories, strict=True)]
    assert 1e-6 < max(differences) < 3e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_captures(name: str) -> None:
    """Every buffer and all attention weights are the oracle's, and the result is what it is without them."""
    runner = recorded_runner(name)
    ops = runner.program.ops
    buffers = tuple(op.out.name for op in ops if not isinstance(op, StoreCross))
    attentions = tuple(op.out.name for op in ops if isinstance(op, (Attention, CrossAttention)))
    found, expected = Capture(buffers, attentions), Capture(buffers, attentions)
    for one, other in zip(whole_story(runner, found), whole_story(runner), strict=True):
        assert_near(one, other, "float32", "output")
    whole_story(make_reference(name, "float32"), expected)
    assert (list(found.values), list(found.weights)) == (list(buffers), list(attentions))
    for buffer in buffers:
        assert_near(found.values[buffer], expected.values[buffer], "float32", buffer)
    for op in attentions:
        for one, other in zip(found.weights[op], expected.weights[op], strict=True):
            assert_near(one, other, "float32", op)
            assert np.array_equal(one == 0, other == 0)  # hidden keys, and no others


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_and_neighbours_do_not_matter(dtype: str) -> None:
    """Decode steps of few rows, brought up to buckets or not, together or alone: the same bits."""
    # 32 and 33 keys are on both sides of a block's end. (Emulated float32 is slow.)
    lengths = {str(i): 1 + (i * 31) % 64 for i in range(3 if dtype == "float32" else 5)}
    runner = recorded_runner("decoder", dtype)

    def decoded(names: list[str], buckets: bool) -> dict[str, list[bytes]]:
        runner.set_buckets(buckets)
        steps = Steps(runner)
        found: dict[str, list[bytes]] = {}
        for name in names:
            steps.step({name: some_ids(lengths[name], int(name))})
        for i in range(2):
            for name, rows in zip(names, steps.step({name: [3 + i] for name in names}), strict=True):
                found.setdefault(name, []).append(rows.tobytes())
        return found

    together = decoded(list(lengths), True)
    assert decoded(list(lengths), False) == together
    for count in (1,) if dtype == "float32" else (1, 3):
        names = list(lengths)[:count]
        assert decoded(names, True) == decoded(names, False) == {name: together[name] for name in names}


def test_sources_in_buckets() -> None:
    """A decoder's steps over sources of other lengths, padded or not."""
    found = []
    for buckets in (True, False):
        runner = recorded_runner("encoder-decoder", "bfloat16")
        runner.set_buckets(buckets)
        steps = Steps(runner)
        steps.encode({"a": some_ids(70, 1), "b": some_ids(2, 2)})
        texts = {"x": [5], "y": [6], "z": [7]}
        found.append([rows.tobytes() for _ in range(3) for rows in steps.step(texts, ["a", "b", "a"])])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_matter_only_to_rounding(dtype: str) -> None:
    """A prompt at once, and in pieces that other kernels run."""
    runner = recorded_runner("decoder", dtype)
    ids = some_ids(70, 1)
    whole = Steps(runner).step({"one": ids})[0]
    for size in (9, 65):
        steps = Steps(runner)
        parts = [steps.step({"one": ids[i : i + size]})[0] for i in range(0, len(ids), size)]
        assert relative(np.concatenate(parts), whole) < (1e-5 if dtype == "float32" else BFLOAT16_RELATIVE)


def test_beams_share_blocks_and_copy_on_write() -> None:
    """Sequences that share blocks, the last of which is copied when one of them goes on: as if each ran by itself."""
    runner = recorded_runner("decoder")
    steps, alone = Steps(runner), Steps(runner)
    steps.step({"a": some_ids(40, 1)})
    cache = steps.caches["step"]
    full, last = steps.blocks["a"]
    cache.share(full)
    steps.blocks["b"], steps.lengths["b"] = [full, cache.copy(last)], 40
    found = steps.step({"a": [5], "b": [6]}) + steps.step({"a": [7], "b": [8]})
    for name, ids in (("a", [5, 7]), ("b", [6, 8])):
        expected = alone.step({name: some_ids(40, 1) + ids})[0][-2:]
        for one, other in zip(found["ab".index(name) :: 2], expected, strict=True):
            assert_near(one[0], other, "float32", name)
    cache.share(last)
    with pytest.raises(errors.ArrayError, match="2 references"):
        steps.step({"a": [1]})


# ------------------------------------------------------------------------------------------------------------ families
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoders(toy_model: str, dtype: str) -> None:
    """Recorded logits; the last prompt as a prompt and single tokens after it."""
    runner = toy_runner(toy_model, dtype)
    recorded = recorded_logits(toy_model)
    error = size = 0.0
    for prompt, expected in recorded[:: max(1, len(recorded) - 1)]:
        stepper, cut = Stepper(runner), max(1, len(prompt) - 2)
        found = [stepper.step({"one": prompt[:cut]})["one"], *(stepper.step({"one": [t]})["one"] for t in prompt[cut:])]
        difference = np.concatenate(found) - expected
        assert dtype != "float32" or np.abs(difference).max() < FLOAT32_TOLERANCE
        error, size = error + float((difference**2).sum()), size + float((expected**2).sum())
    assert error <= BFLOAT16_RELATIVE**2 * size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, dtype: str) -> None:
    model = pyllm.load(toy_folder(name), dtype=dtype, device="cuda")
    assert isinstance(model, EncoderModel)
    texts, outputs, hidden = zip(*recorded_texts(name), strict=True)
    output, expected = ("head", outputs) if model.head else ("hidden", hidden)
    found = model.forward([ids for ids, _ in texts], [types for _, types in texts], output=output)
    for rows, other in zip(found, expected, strict=True):
        if dtype == "float32":
            np.testing.assert_allclose(rows, other, rtol=0, atol=FLOAT32_TOLERANCE)
        else:
            assert np.sqrt(((rows - other) ** 2).mean()) <= BFLOAT16_RELATIVE * max(1.0, expected[-1].std())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders(name: str, dtype: str) -> None:
    runner = toy_runner(name, dtype)
    error = size = 0.0
    for source, decoder, expected in recorded_pairs(name)[1:4:2]:
        difference = outputs_of(runner, source, decoder, 24)[-len(expected) :] - expected
        assert dtype != "float32" or np.abs(difference).max() < FLOAT32_TOLERANCE
        error, size = error + float((difference**2).sum()), size + float((expected**2).sum())
    assert error <= BFLOAT16_RELATIVE**2 * size


@pytest.mark.parametrize("quantization", ["int8", "int8-fast", "int4", "int4-g128"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2_moe", "mixtral"])
def test_quantised_decoders(name: str, quantization: str) -> None:
    """What the dequantised weights give in float64."""
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        oracle = ReferenceRunner(network, Dequantized(network, bound, quantization))
        runner = CudaRunner(network, bind(network, checkpoint), dtype="float32", quantization=quantization)
        assert runner.quantization == quantization
        ids = [5, 17, 80, 3, 99, 41, 7, 120, 64, 33, 2, 90]
        expected = logits_of(oracle, ids)
        np.testing.assert_allclose(logits_of(runner, ids), expected, rtol=0, atol=QUANTIZED_TOLERANCE * expected.std())
        narrow = CudaRunner(network, bind(network, checkpoint), dtype="bfloat16", quantization=quantization)
        assert relative(logits_of(narrow, ids), expected) < 2 * BFLOAT16_RELATIVE


# ---------------------------------------------------------------------------------------------------------------- text
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


# -------------------------------------------------------------------------------------------------- errors and memory
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
