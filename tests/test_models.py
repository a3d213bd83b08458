"""Every family against transformers: recorded outputs (tests/fixtures), and live where torch and transformers are here.

Runners: "float64" (the NumPy oracle), "float32" and "bfloat16" (the C++ core). What a sequence gives may not depend on
how it was fed: chunks and neighbours are compared, bitwise on the core.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import OWN_ORDER, recorded_cases, recorded_logits, toy_folder
from stepping import Stepper, greedy, logits_of
from toy_models import SEARCH_MODELS

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.models import bind, build_program
from pyllm.program.batch import Runner

# float32 sums of up to ~100 terms through two layers: measured differences are near 1e-5, logits deviate by 1 to 3.
FLOAT32_TOLERANCE = 1e-4
# bfloat16 keeps 8 bits (relative error 2^-9 a rounding), a dozen roundings lie between a token and its logits, and
# attention to a near tie can amplify one: measured up to 0.16 of the logits' deviation against float32.
BFLOAT16_TOLERANCE = 0.3
BFLOAT16_RELATIVE = 2e-2  # of the norm of all recorded logits: measured up to 0.018
RUNNERS = ("float64", "float32", "bfloat16")


def make_runner(name: str, kind: str, num_threads: int | None = None, isa: str | None = None) -> Runner:
    checkpoint = open_checkpoint(toy_folder(name))
    program = build_program(checkpoint.config)
    tensors = bind(program, checkpoint)
    if kind == "float64":
        return ReferenceRunner(program, tensors)
    return tested_device.make_runner(program, tensors, dtype=kind, num_threads=num_threads, isa=isa)


@pytest.mark.parametrize("kind", RUNNERS)
def test_logits_equal_those_of_transformers(toy_model: str, kind: str) -> None:
    runner = make_runner(toy_model, kind)
    error = size = 0.0
    for prompt, expected in recorded_logits(toy_model):
        found = logits_of(runner, prompt)
        tolerance = BFLOAT16_TOLERANCE * expected.std() if kind == "bfloat16" else FLOAT32_TOLERANCE
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        error += float(((found - expected) ** 2).sum())
        size += float((expected**2).sum())
    assert error <= BFLOAT16_RELATIVE**2 * size


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_greedy_text_equals_that_of_transformers(toy_model: str, kind: str) -> None:
    runner = make_runner(toy_model, kind)
    for case in recorded_cases(toy_model)[:4]:
        assert case["name"].startswith("greedy")
        assert greedy(runner, case["prompt"], case["options"]["max_new_tokens"]) == case["token_ids"][0]


def assert_same(kind: str, found: np.ndarray, expected: np.ndarray) -> None:
    if kind == "float64":  # BLAS sums in an order that depends on the number of rows
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", RUNNERS)
def test_chunks_do_not_matter(toy_model: str, kind: str) -> None:
    runner = make_runner(toy_model, kind)
    prompt = recorded_logits(toy_model)[2][0]
    whole = logits_of(runner, prompt)
    for chunk in (1, 7, 33):
        assert_same(kind, logits_of(runner, prompt, chunk), whole)


@pytest.mark.parametrize("kind", RUNNERS)
def test_neighbours_do_not_matter(toy_model: str, kind: str) -> None:
    runner = make_runner(toy_model, kind)
    prompts = {str(i): prompt for i, (prompt, _) in enumerate(recorded_logits(toy_model))}
    together = Stepper(runner)
    first = together.step({name: prompt[:-1] for name, prompt in prompts.items() if len(prompt) > 1})
    last = together.step({name: prompt[-1:] for name, prompt in prompts.items()})  # decodes beside a prefill
    for name, prompt in prompts.items():
        found = np.concatenate([first[name], last[name]]) if name in first else last[name]
        assert_same(kind, found, logits_of(runner, prompt))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_threads_do_not_matter(toy_model: str, kind: str) -> None:
    prompt = recorded_logits(toy_model)[2][0]
    one = logits_of(make_runner(toy_model, kind, 1), prompt, 39)
    for threads in (2, 3):
        assert_same(kind, logits_of(make_runner(toy_model, kind, threads), prompt, 39), one)


def test_bfloat16_follows_its_reference(toy_model: str) -> None:
    """The roundings are the same, the order of sums is not: equal to 1e-6 until a value rounds the other way."""
    checkpoint = open_checkpoint(toy_folder(toy_model))
    program = build_program(checkpoint.config)
    oracle = ReferenceRunner(program, bind(program, checkpoint), dtype="bfloat16")
    runner = make_runner(toy_model, "bfloat16")
    for prompt, expected in recorded_logits(toy_model):
        difference = logits_of(runner, prompt) - logits_of(oracle, prompt)
        assert np.abs(difference).max() <= 0.05 * expected.std()
        assert np.sqrt((difference**2).mean()) <= 0.005 * expected.std()


@pytest.mark.parametrize("name", [*SEARCH_MODELS, "gptj", "bloom", "stablelm-norms"])
def test_every_instruction_set_gives_the_recorded_logits(isa: str, name: str) -> None:
    """bfloat16 is bitwise the same on each of them but the one with an order of its own, float32 up to rounding."""
    prompt, expected = recorded_logits(name)[2]
    found = logits_of(make_runner(name, "float32", isa=isa), prompt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    lowest = logits_of(make_runner(name, "bfloat16", isa="scalar"), prompt)
    found = logits_of(make_runner(name, "bfloat16", isa=isa), prompt)
    if isa == OWN_ORDER:
        np.testing.assert_allclose(found, lowest, rtol=0, atol=0.05 * expected.std())
        assert np.sqrt(((found - lowest) ** 2).mean()) <= 0.005 * expected.std()
    else:
        assert_same("bfloat16", found, lowest)


@cache
def transformers_logits(name: str) -> list[tuple[list[int], np.ndarray]]:
    """(prompt, logits [T, V]) for a few prompts, computed here and now."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(toy_folder(name), dtype=torch.float32).eval()
    limit = build_program(open_checkpoint(toy_folder(name)).config).max_positions
    random = np.random.default_rng(7)
    prompts = [random.integers(0, 131, size=n).tolist() for n in (2, 31, 32, 33, min(96, limit))]
    with torch.no_grad():
        return [(prompt, model(torch.tensor([prompt])).logits[0].numpy()) for prompt in prompts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_logits_equal_those_of_transformers_live(toy_model: str, kind: str) -> None:
    runner = make_runner(toy_model, kind)
    for prompt, expected in transformers_logits(toy_model):
        np.testing.assert_allclose(logits_of(runner, prompt), expected, rtol=0, atol=FLOAT32_TOLERANCE)
