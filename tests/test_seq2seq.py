"""Every encoder-decoder family against transformers: recorded outputs (tests/fixtures), and live where it is here.

Runners: "float64" (the NumPy oracle), "float32" and "bfloat16" (the C++ core). What a pair gives may not depend on how
it was fed: chunks of the target, and neighbours of both, are compared, bitwise on the core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import OWN_ORDER, available_isas, toy_folder
from stepping_seq2seq import Translator, outputs_of
from toy_seq2seq import CONFIGS, GENERATING, SEARCH_MODELS

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.models import bind, build_network
from pyllm.program.batch import Capture, Runner

# As in test_models.py: float32 sums through a few layers, measured differences are near 1e-5.
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 0.3
BFLOAT16_RELATIVE = 2e-2  # of the norm of all recorded logits: measured up to 0.017
RUNNERS = ("float64", "float32", "bfloat16")

Pair = tuple[list[int], list[int], np.ndarray]
models = pytest.mark.parametrize("name", CONFIGS)


def make_runner(name: str, kind: str, num_threads: int | None = None, isa: str | None = None) -> Runner:
    checkpoint = open_checkpoint(toy_folder(name))
    network = build_network(checkpoint.config)
    tensors = bind(network, checkpoint)
    if kind == "float64":
        return ReferenceRunner(network, tensors)
    return tested_device.make_runner(network, tensors, dtype=kind, num_threads=num_threads, isa=isa)


def recorded(name: str) -> list[Pair]:
    """(source, decoder ids, float32 [T, V]); of a classifier [1, labels], what the last row gives."""
    with np.load(toy_folder(name) / "logits.npz") as arrays:
        indices = range(sum(key.startswith("source") for key in arrays))
        pairs = [(arrays[f"source_{i}"].tolist(), arrays[f"decoder_{i}"].tolist()) for i in indices]
        found = [(*pair, arrays[f"logits_{i}"]) for i, pair in enumerate(pairs)]
    if name in GENERATING:
        return found
    start = CONFIGS[name]["decoder_start_token_id"]
    return [(source, [start, *source[:-1]], logits[None]) for source, _, logits in found]


@pytest.mark.parametrize("kind", RUNNERS)
@models
def test_logits_equal_those_of_transformers(name: str, kind: str) -> None:
    runner = make_runner(name, kind)
    error = size = 0.0
    for source, decoder, expected in recorded(name):
        found = outputs_of(runner, source, decoder)[-len(expected) :]
        tolerance = BFLOAT16_TOLERANCE * expected.std() if kind == "bfloat16" else FLOAT32_TOLERANCE
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        error += float(((found - expected) ** 2).sum())
        size += float((expected**2).sum())
    assert error <= BFLOAT16_RELATIVE**2 * size


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("name", GENERATING)
def test_the_encoder_equals_that_of_transformers(name: str, kind: str) -> None:
    runner = make_runner(name, kind)
    with np.load(toy_folder(name) / "logits.npz") as arrays:
        for index, (source, _, _) in enumerate(recorded(name)):
            found = Translator(runner).encode({"one": source})["one"]
            np.testing.assert_allclose(found, arrays[f"encoded_{index}"], rtol=0, atol=FLOAT32_TOLERANCE)


def assert_same(kind: str, found: np.ndarray, expected: np.ndarray) -> None:
    if kind == "float64":  # BLAS sums in an order that depends on the number of rows
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", RUNNERS)
@models
def test_chunks_do_not_matter(name: str, kind: str) -> None:
    runner = make_runner(name, kind)
    source, decoder, _ = recorded(name)[3]
    whole = outputs_of(runner, source, decoder)
    for chunk in (1, 7, 33):
        assert_same(kind, outputs_of(runner, source, decoder, chunk), whole)


@pytest.mark.parametrize("kind", RUNNERS)
@models
def test_neighbours_do_not_matter(name: str, kind: str) -> None:
    runner = make_runner(name, kind)
    pairs = {str(index): pair for index, pair in enumerate(recorded(name))}
    together = Translator(runner)
    encoded = together.encode({key: source for key, (source, _, _) in pairs.items()})
    first = together.step({key: decoder[:-1] for key, (_, decoder, _) in pairs.items() if len(decoder) > 1})
    last = together.step({key: decoder[-1:] for key, (_, decoder, _) in pairs.items()})
    for key, (source, decoder, _) in pairs.items():
        found = np.concatenate([first[key], last[key]]) if key in first else last[key]
        alone = Translator(runner)
        source_alone, target_alone = alone.encode({"one": source})["one"], alone.step({"one": decoder})["one"]
        if kind == "float64":
            assert_same(kind, found, target_alone)
            assert_same(kind, encoded[key], source_alone)
        else:  # of all pairs at once, more rows than a GPU's kernels for few take
            tested_device.assert_same_numbers(found, target_alone, kind)
            tested_device.assert_same_numbers(encoded[key], source_alone, kind)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@models
def test_threads_do_not_matter(name: str, kind: str) -> None:
    source, decoder, _ = recorded(name)[3]
    one = outputs_of(make_runner(name, kind, 1), source, decoder, 39)
    for threads in (2, 3):
        assert_same(kind, outputs_of(make_runner(name, kind, threads), source, decoder, 39), one)


@models
def test_bfloat16_follows_its_reference(name: str) -> None:
    """The roundings are the same, the order of sums is not: equal to 1e-6 until a value rounds the other way, which in
    the long pairs some do; then a tenth of the logits' deviation at most, measured up to 0.06."""
    checkpoint = open_checkpoint(toy_folder(name))
    network = build_network(checkpoint.config)
    oracle = ReferenceRunner(network, bind(network, checkpoint), dtype="bfloat16")
    runner = make_runner(name, "bfloat16")
    for source, decoder, expected in recorded(name):
        difference = outputs_of(runner, source, decoder) - outputs_of(oracle, source, decoder)
        if len(source) + len(decoder) < 10:
            assert np.abs(difference).max() <= 1e-4 * expected.std()
        assert np.abs(difference).max() <= 0.1 * expected.std()
        assert np.sqrt((difference**2).mean()) <= 0.015 * expected.std()


@pytest.mark.parametrize("name", SEARCH_MODELS)
def test_every_instruction_set_gives_the_recorded_logits(isa: str, name: str) -> None:
    """bfloat16 is bitwise the same on each that has fused multiply-add (but avx512_bf16), float32 up to rounding. Norms
    after the blocks show the scalar set's two roundings; before a block they vanish in those of bfloat16."""
    source, decoder, expected = recorded(name)[3]
    found = outputs_of(make_runner(name, "float32", isa=isa), source, decoder)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    found = outputs_of(make_runner(name, "bfloat16", isa=isa), source, decoder)
    np.testing.assert_allclose(found, expected, rtol=0, atol=BFLOAT16_TOLERANCE * expected.std())
    if isa not in ("scalar", OWN_ORDER):
        lowest = next(other for other in available_isas() if other != "scalar")
        assert_same("bfloat16", found, outputs_of(make_runner(name, "bfloat16", isa=lowest), source, decoder))


def transformers_model(name: str) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    kind = transformers.AutoModelForSeq2SeqLM if name in GENERATING else transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(toy_folder(name), dtype=torch.float32).eval()


@pytest.mark.filterwarnings("ignore")
@models
def test_hidden_states_equal_those_of_transformers_live(name: str) -> None:
    """All of them, and the logits, at lengths around a cache block."""
    torch = pytest.importorskip("torch")
    theirs, runner, network = transformers_model(name), make_runner(name, "float64"), build_network(CONFIGS[name])
    random = np.random.default_rng(7)
    eos = CONFIGS[name]["eos_token_id"]
    for size in (2, 31, 32, 33, 60):
        source = [*random.integers(3, 95, size=size - 1).tolist(), eos]
        decoder = [CONFIGS[name]["decoder_start_token_id"], *random.integers(3, 95, size=60 - size).tolist()]
        if name not in GENERATING:
            decoder = [CONFIGS[name]["decoder_start_token_id"], *source[:-1]]
        ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([decoder])}
        with torch.no_grad():
            output = theirs(**ids, output_hidden_states=True)
        translator = Translator(runner)
        for which, program in network.programs.items():
            capture = Capture(buffers=program.hidden)
            if which == "encode":
                translator.encode({"one": source}, capture)
                states = output.encoder_hidden_states
            else:
                logits = translator.step({"one": decoder}, capture)["one"]
                states = output.decoder_hidden_states
                expected = output.logits[0].numpy().reshape(-1, logits.shape[1])
                np.testing.assert_allclose(logits[-len(expected) :], expected, rtol=0, atol=FLOAT32_TOLERANCE)
            assert len(states) == len(program.hidden)
            for buffer, state in zip(program.hidden, states, strict=True):
                np.testing.assert_allclose(capture.values[buffer], state[0].numpy(), rtol=0, atol=FLOAT32_TOLERANCE)
