"""CudaRunner: whole networks on every device at hand (cuda_arrays.py), against the float64 oracle, recorded outputs of
transformers, and bitwise against itself when padding, neighbours, captures and beams differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import recorded_logits, toy_folder
from cuda_runners import chosen_device, recorded_runner, toy_runner  # noqa: F401
from quantized_layouts import write_quantized
from recorded_programs import Steps, some_ids
from stepping import Stepper, logits_of
from stepping_seq2seq import outputs_of
from test_cpu_programs import NETWORKS, assert_near, make_reference, whole_story
from test_encoders import recorded as recorded_texts
from test_quantization import PACKED, Dequantized
from test_quantized_checkpoints import LAYOUTS, multiple_of, unstacked_copy
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


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The root of the mean square of the difference, of that of what is expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


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
    """Decode steps of few rows, padded to buckets or not, launched or replayed, together or alone: the same bits."""
    # 32 and 33 keys are on both sides of a block's end. (Emulated float32 is slow.)
    lengths = {str(i): 1 + (i * 31) % 64 for i in range(3 if dtype == "float32" else 5)}
    runner = recorded_runner("decoder", dtype)

    def decoded(names: list[str], buckets: bool) -> dict[str, list[bytes]]:
        runner.set_buckets(buckets)
        steps = Steps(runner)
        found: dict[str, list[bytes]] = {}
        for name in names:
            steps.step({name: some_ids(lengths[name], int(name))})
        for i in range(3):
            for name, rows in zip(names, steps.step({name: [3 + i] for name in names}), strict=True):
                found.setdefault(name, []).append(rows.tobytes())
        return found

    together = decoded(list(lengths), True)
    assert runner.graphs == 1
    assert decoded(list(lengths), False) == together
    for count in (1,) if dtype == "float32" else (1, 3):
        names = list(lengths)[:count]
        assert decoded(names, True) == decoded(names, False) == {name: together[name] for name in names}


def test_graphs_of_decoders_with_sources() -> None:
    """Sources of other lengths, steps padded and replayed or not; graphs go with the memory whose addresses they know,
    and steps of another kind may come between."""
    found = []
    for buckets in (True, False):
        runner = recorded_runner("encoder-decoder", "bfloat16")
        runner.set_buckets(buckets)
        steps, texts = Steps(runner), {"x": [5], "y": [6], "z": [7]}
        steps.encode({"a": some_ids(70, 1), "b": some_ids(2, 2)})
        found.append([rows.tobytes() for _ in range(3) for rows in steps.step(texts, ["a", "b", "a"])])
        assert runner.graphs == int(buckets)
        steps.encode({"c": some_ids(33, 3)})
        found[-1] += [rows.tobytes() for _ in range(2) for rows in steps.step(texts, ["a", "b", "a"])]
        runner._executor.reserve(4 * runner.rows_per_step)
        assert runner.graphs == 0
        found[-1] += [rows.tobytes() for _ in range(3) for rows in steps.step(texts, ["c", "b", "a"])]
        assert runner.graphs == int(buckets)
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


@pytest.mark.parametrize(
    ("label", "name"), [("gptq asymmetric", "qwen2_moe"), ("awq gemm", "llama"), ("gptq 8 bit whole", "gpt2")]
)
@pytest.mark.filterwarnings("ignore:.*which no packed format holds")  # what the multiple of 8 left in part as it was
def test_quantised_checkpoints(label: str, name: str, tmp_path: Path) -> None:
    layout, config, _ = LAYOUTS[label]
    source = unstacked_copy(toy_folder(name), tmp_path / "source")
    _, folder = write_quantized(source, tmp_path, layout, config, multiple=max(8, multiple_of(label)))
    ids = [5, 17, 80, 3, 99, 41]
    with pyllm.load(folder, device="reference") as oracle, pyllm.load(folder, dtype="float32", device="cuda") as model:
        expected = oracle.logits(ids)
        assert model.quantization is not None
        assert model.quantization.startswith(PACKED[label])
        assert relative(model.logits(ids), expected) < QUANTIZED_TOLERANCE
