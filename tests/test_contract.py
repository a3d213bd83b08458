"""The numeric contract: a sequence's result depends on the weights and its own tokens only, bit for bit.

Alone or in a batch, the prompt whole or in chunks, one thread or two, its cache reordered or not, streamed or not; in
bfloat16 also on whatever instruction set, but avx512_bf16. On a GPU where its kernels for few and for many rows differ,
up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import available_isas, common_order_isas, toy_folder
from numpy.typing import NDArray
from stepping import Stepper, logits_of

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import make_policy
from pyllm.devices.cpu import CpuRunner
from pyllm.engine.engine import Engine
from pyllm.engine.results import Generation
from pyllm.models import bind, build_program

DTYPES = ("float32", "bfloat16")
MODELS = ("gpt2", "llama", "qwen2-window")  # heads of 12; grouped heads with rope; a sliding window


def load(name: str, dtype: str, num_threads: int) -> pyllm.LanguageModel:
    folder = pyllm.default_model() if name == "default" else toy_folder(name)
    loaded = pyllm.load(folder, dtype=dtype, num_threads=None if tested_device.ON_CUDA else num_threads)
    loaded.generation_config = {}
    return loaded


@pytest.fixture(scope="module", params=[(name, dtype) for name in (*MODELS, "default") for dtype in DTYPES], ids=str)
def models(request: pytest.FixtureRequest) -> Iterator[tuple[pyllm.LanguageModel, pyllm.LanguageModel]]:
    """The same model on one thread and on two."""
    one, two = load(*request.param, 1), load(*request.param, 2)
    yield one, two
    one.close()
    two.close()


def ids(length: int, model: pyllm.LanguageModel) -> list[int]:
    return np.random.RandomState(length).randint(3, min(120, model.program.vocab_size), size=length).tolist()


def same(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> None:
    assert a is not None
    assert b is not None
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def near(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None, model: pyllm.LanguageModel) -> None:
    """The same, where a GPU may have run them in kernels of another kind."""
    assert a is not None
    assert b is not None
    tested_device.assert_same_numbers(a, b, model.dtype)


def generate(model: pyllm.LanguageModel, prompt: list[int], **options: Any) -> Generation:
    result = model.generate(prompt, **{"output_logits": True, **options})
    assert isinstance(result, Generation)
    return result


LENGTHS = (1, 2, 5, 16, 17, 31, 33, 50)


def test_threads(models: tuple[pyllm.LanguageModel, pyllm.LanguageModel]) -> None:
    one, two = models
    for length in LENGTHS:
        same(one.logits(ids(length, one)), two.logits(ids(length, one)))


def test_batch(models: tuple[pyllm.LanguageModel, pyllm.LanguageModel]) -> None:
    _, model = models
    prompts = [ids(length, model) for length in LENGTHS]
    batched = model.generate(prompts, max_new_tokens=10, output_logits=True)
    for prompt, result in zip(prompts, batched, strict=True):
        alone = generate(model, prompt, max_new_tokens=10)
        assert alone.token_ids == result.token_ids
        near(alone.logits, result.logits, model)


def test_decoded_rows_equal_one_forward_pass(models: tuple[pyllm.LanguageModel, pyllm.LanguageModel]) -> None:
    """One row at a time through the cache, against all rows at once."""
    one, model = models
    for length in (1, 30):
        prompt = ids(length, model)
        result = generate(model, prompt, max_new_tokens=12)
        near(result.logits, one.logits([*prompt, *result.token_ids])[length - 1 : -1], model)


@pytest.mark.parametrize("rows_per_step", [1, 7, 16, 32])
def test_chunks(models: tuple[pyllm.LanguageModel, pyllm.LanguageModel], rows_per_step: int) -> None:
    _, model = models
    prompt = ids(50, model)
    options = GenerationOptions.build({}, {"max_new_tokens": 6, "output_logits": True})
    policy = make_policy(prompt, options, vocab_size=model.program.vocab_size)
    with Engine(model._open_runner(), rows_per_step=rows_per_step) as engine:
        engine.add(policy)
        while engine.busy:
            engine.step()
        assert engine.cache.blocks_in_use == 0
    whole = generate(model, prompt, max_new_tokens=6)
    assert policy.results()[0].token_ids == whole.token_ids
    near(policy.results()[0].logits, whole.logits, model)


def test_beams(models: tuple[pyllm.LanguageModel, pyllm.LanguageModel]) -> None:
    """Logits along each beam, through forks and reorderings, equal one forward pass over its tokens."""
    _, model = models
    prompt = ids(29, model)  # the beams cross a block boundary
    result = generate(model, prompt, max_new_tokens=16, num_beams=5, num_return_sequences=5)
    for sequence in result.sequences:
        near(sequence.logits, model.logits([*prompt, *sequence.token_ids])[len(prompt) - 1 : -1], model)
    crowd = model.generate([ids(40, model), prompt], max_new_tokens=16, num_beams=5, num_return_sequences=5)
    for other, sequence in zip(crowd[1].sequences, result.sequences, strict=True):
        assert other.token_ids == sequence.token_ids
        tested_device.assert_same_numbers(other.score, sequence.score, model.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed(dtype: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "seed": 11, "output_logits": True}
    with load("default", dtype, 1) as one, load("default", dtype, 2) as two:
        stream = one.stream("The prince", **options)
        pieces = list(stream)
        whole = generate(two, two.tokenizer.encode("The prince"), **options)
    assert "".join(pieces) == whole.text
    same(stream.result.logits, whole.logits)


@pytest.mark.cpu_only("instruction sets")
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_does_not_depend_on_the_instruction_set(name: str) -> None:
    prompt = np.random.RandomState(1).randint(3, 120, size=45).tolist()
    found = {}
    with open_checkpoint(toy_folder(name)) as checkpoint:
        program = build_program(checkpoint.config)
        tensors = bind(program, checkpoint)
        for isa in common_order_isas():
            with Engine(CpuRunner(program, tensors, dtype="bfloat16", num_threads=2, isa=isa)) as engine:
                found[isa] = engine.score(prompt)
    for logits in found.values():
        same(found["scalar"], logits)


# dtype, quantization, kv_cache: every format of weights and every format of keys and values on every instruction set.
FORMS = (
    ("float16", None, None),
    ("bfloat16", "int8", "int8"),
    ("float32", "int8-fast", "bfloat16"),
    ("float16", "int4", "int8"),
    ("bfloat16", "int4-g128", "float16"),
)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_formats_on_every_instruction_set(name: str, form: tuple[str, str | None, str | None], isa: str) -> None:
    """One thread and two, whole and in chunks, alone and among others."""
    dtype, quantization, kv_cache = form
    options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "kv_cache": kv_cache, "isa": isa}
    texts = {str(n): np.random.RandomState(n).randint(3, 120, size=n).tolist() for n in (1, 5, 17, 37, 60)}
    with open_checkpoint(toy_folder(name)) as checkpoint:
        program = build_program(checkpoint.config)
        tensors = bind(program, checkpoint)
        one, two = (CpuRunner(program, tensors, num_threads=threads, **options) for threads in (1, 2))
    together = Stepper(two)
    first = together.step({each: ids[: len(ids) // 2] for each, ids in texts.items() if len(ids) > 1})
    second = together.step({each: ids[len(ids) // 2 :] for each, ids in reversed(texts.items())})
    for each, ids in texts.items():
        whole = logits_of(one, ids)
        assert np.isfinite(whole).all()
        same(whole, np.concatenate([first[each], second[each]]) if each in first else second[each])
        same(whole, logits_of(two, ids, 16))
    same(whole, logits_of(two, ids, 1))


@pytest.mark.cpu_only("instruction sets")
@pytest.mark.parametrize("quantization", ["int8", "int8-fast", "int4", "int4-g128"])
def test_integers_do_not_depend_on_the_instruction_set(quantization: str) -> None:
    """Where everything multiplied is an integer. Plain x86-64 rounds norms and sums of groups otherwise."""
    prompt = np.random.RandomState(1).randint(3, 120, size=45).tolist()
    options: dict[str, Any] = {"dtype": "bfloat16", "quantization": quantization, "kv_cache": "int8"}
    with open_checkpoint(toy_folder("llama")) as checkpoint:
        program = build_program(checkpoint.config)
        tensors = bind(program, checkpoint)
        found = {
            isa: logits_of(CpuRunner(program, tensors, isa=isa, **options), prompt)
            for isa in available_isas()
            if isa != "scalar"
        }
    for logits in found.values():
        same(next(iter(found.values())), logits)
