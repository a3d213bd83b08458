"""The oracle itself: its definitions against independent, even plainer ones; its cache; its trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import toy_config, toy_folder
from stepping import Stepper

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceCache, ReferenceRunner
from pyllm.errors import OutOfMemoryError
from pyllm.models import bind, build_program
from pyllm.program import reference
from pyllm.program.batch import BLOCK_TOKENS
from pyllm.program.interpreter import Interpreter, KeyValues

RANDOM = np.random.default_rng(3)


def test_bfloat16_rounds_to_nearest_even_and_flushes_denormals() -> None:
    cases = {
        1.0: 1.0,
        1 + 2**-8: 1.0,  # a tie goes to the even neighbour
        1 + 3 * 2**-8: 1 + 2**-6,
        1 + 2**-8 + 2**-20: 1 + 2**-7,
        -3.4e38: -math.inf,
        2.0**-126: 2.0**-126,
        2.0**-127: 0.0,
        math.inf: math.inf,
    }
    np.testing.assert_array_equal(reference.round_bf16(list(cases)), list(cases.values()))
    assert np.isnan(reference.round_bf16(math.nan))
    torch = pytest.importorskip("torch")
    values = (RANDOM.standard_normal(10_000) * 10.0 ** RANDOM.integers(-30, 30, 10_000)).astype(np.float32)
    np.testing.assert_array_equal(reference.round_bf16(values), torch.tensor(values).bfloat16().float().numpy())


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int) -> np.ndarray:
    """One query, one head, one key at a time."""
    out = np.zeros_like(q)
    for t in range(len(q)):
        position = len(k) - len(q) + t
        keys = [c for c in range(position + 1) if window == 0 or position - c < window]
        for h in range(q.shape[1]):
            group = h // (q.shape[1] // k.shape[1])
            weights = [math.exp(scale * sum(q[t, h] * k[c, group])) for c in keys]
            out[t, h] = sum(w * v[c, group] for w, c in zip(weights, keys, strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize("window", [0, 3])
def test_attention(window: int) -> None:
    q, k, v = (RANDOM.standard_normal((n, heads, 5)) for n, heads in ((4, 6), (9, 2), (9, 2)))
    found = reference.attention(q, k, v, scale=0.4, window=window)
    np.testing.assert_allclose(found, plain_attention(q, k, v, 0.4, window), rtol=1e-12)


def test_softcap_bounds_scores() -> None:
    q, k = np.full((1, 1, 4), 9.0), np.array([[[9.0] * 4], [[-9.0] * 4]])
    v = np.array([[[1.0]], [[0.0]]]) * np.ones(4)
    found = reference.attention(q, k, v, scale=1.0, softcap=2.0)
    np.testing.assert_allclose(found, 1 / (1 + math.exp(-4.0)))  # scores end up at +-2


def test_rope_in_pairs_is_rope_in_halves_of_permuted_elements() -> None:
    x, table = RANDOM.standard_normal((3, 2, 8)), reference.rotary([0, 1, 77], [1.0, 0.3, 0.01])
    order = [0, 2, 4, 1, 3, 5, 6, 7]  # six of eight elements are rotated
    found = reference.rope(x, table, interleaved=True)
    np.testing.assert_allclose(found[..., order], reference.rope(x[..., order], table))
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])
    complex_pairs = (x[..., 0:6:2] + 1j * x[..., 1:6:2]) * (table[:, None, :3] + 1j * table[:, None, 3:])
    np.testing.assert_allclose(found[..., 0:6:2], complex_pairs.real)


def test_activations_at_known_points() -> None:
    x = np.array([-30.0, -1.0, 0.0, 1.0, 800.0])
    np.testing.assert_allclose(reference.activation("silu", x)[[1, 3]], [-0.2689414213699951, 0.7310585786300049])
    np.testing.assert_allclose(reference.activation("gelu", x)[[1, 3]], [-0.15865525393145707, 0.8413447460685429])
    np.testing.assert_allclose(reference.activation("gelu_tanh", x)[[1, 3]], [-0.15880800939172324, 0.8411919906082768])
    np.testing.assert_allclose(reference.activation("quick_gelu", x)[[1, 3]], [-0.15420423, 0.84579577], rtol=1e-7)
    for name in ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu"):
        assert reference.activation(name, x)[2] == 0
        assert reference.activation(name, x)[4] == 800
        assert abs(reference.activation(name, x)[0]) < 1e-11


def test_blocks_are_counted_and_copied() -> None:
    checkpoint = open_checkpoint(toy_folder("gpt2"))
    program = build_program(checkpoint.config)
    runner = ReferenceRunner(program, bind(program, checkpoint))
    stepper = Stepper(runner)
    prompt = list(range(BLOCK_TOKENS + 5))
    expected = stepper.step({"a": [*prompt, 9, 8]})["a"][-1]
    stepper.step({"b": prompt})
    full, partial = stepper.blocks["b"]
    stepper.cache.share(full)
    stepper.blocks["c"], stepper.lengths["c"] = [full, stepper.cache.copy(partial)], len(prompt)
    stepper.step({"b": [50, 51]})  # must not reach c
    np.testing.assert_allclose(stepper.step({"c": [9, 8]})["c"][-1], expected, atol=1e-5)
    assert (stepper.cache.references(full), stepper.cache.references(partial)) == (2, 1)
    assert stepper.cache.blocks_in_use == 5
    for block in (full, full, partial):
        stepper.cache.release(block)
    assert stepper.cache.blocks_in_use == 3
    with pytest.raises(ValueError, match="is not; allocate it first"):
        stepper.cache.release(full)


def test_the_cache_refuses_more_than_its_blocks() -> None:
    cache = ReferenceCache(KeyValues.of(build_program(toy_config("gpt2"))), max_blocks=2)
    blocks = [cache.allocate(), cache.allocate()]
    with pytest.raises(OutOfMemoryError, match="2 blocks may be in use"):
        cache.copy(blocks[0])
    cache.release(blocks[0])
    assert cache.allocate() == blocks[0]


def test_the_trace_names_every_buffer() -> None:
    checkpoint = open_checkpoint(toy_folder("llama"))
    program = build_program(checkpoint.config)
    logits, trace = Interpreter(program, bind(program, checkpoint)).forward([3, 4, 5])
    assert list(trace) == [op.out.name for op in program.ops]
    for op in program.ops:
        assert trace[op.out.name].shape == (3, op.out.cols)
    assert trace["logits"] is logits
