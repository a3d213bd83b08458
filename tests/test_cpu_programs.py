"""CpuRunner on networks that use every operation: against the float64 oracle, and bitwise against itself when threads,
batches, chunks, beams and captures differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import common_order_isas
from recorded_programs import (
    POSITIONS,
    VOCAB,
    D,
    E,
    H,
    RandomTensors,
    Steps,
    by_head,
    decoder,
    encoder,
    encoder_decoder,
    matrix,
    some_ids,
)

from pyllm.devices.cpu import CpuRunner
from pyllm.devices.reference import ReferenceRunner
from pyllm.errors import ArrayError, PromptError
from pyllm.program.batch import Batch, Capture, Summary
from pyllm.program.listing import op_name
from pyllm.program.network import Network, as_network
from pyllm.program.program import Attention, CrossAttention, Linear, StoreCross
from pyllm.program.recorder import Recorder
from pyllm.program.tensors import Disentangled

pytestmark = pytest.mark.cpu_only("CpuRunner; CudaRunner's are in test_cuda_models.py")

NETWORKS: dict[str, Callable[[], Network]] = {
    "decoder": lambda: as_network(decoder()),
    "encoder": encoder,
    "encoder-decoder": encoder_decoder,
}
DTYPES = ("float32", "bfloat16")
# (largest, root mean square) difference. float32: a few hundred roundings. bfloat16: float32 sums and float64 sums
# round to different bfloat16 now and then, by 2**-8 of a value, which spreads through three layers: rarely far.
TOLERANCE = {"float32": (2e-5, 5e-6), "bfloat16": (1e-1, 5e-3)}


def make(name: str, dtype: str, num_threads: int = 2, isa: str | None = None) -> CpuRunner:
    network = NETWORKS[name]()
    return CpuRunner(network, RandomTensors(network), dtype=dtype, num_threads=num_threads, isa=isa)


def make_reference(name: str, dtype: str) -> ReferenceRunner:
    network = NETWORKS[name]()
    return ReferenceRunner(network, RandomTensors(network), dtype="float64" if dtype == "float32" else "bfloat16")


def assert_near(found: np.ndarray, expected: np.ndarray, dtype: str, what: str) -> None:
    """Relative to the largest value where that is above 1."""
    difference = np.abs(found - expected) / max(1.0, np.abs(expected).max())
    largest, rms = TOLERANCE[dtype]
    assert found.shape == expected.shape
    assert difference.max() <= largest, f"{what}: {difference.max()} off"
    assert np.sqrt((difference**2).mean()) <= rms, f"{what}: {np.sqrt((difference**2).mean())} off in the mean"


def whole_story(runner: Any, capture: Capture | None = None) -> list[np.ndarray]:
    """Prompts, many at once, then a few rows at a time: every path through the executor. capture: of the last step of
    each program."""
    steps, out = Steps(runner), []
    kind = runner.network.kind
    if kind != "decoder":
        out += steps.encode({"a": some_ids(110, 1), "b": some_ids(3, 2), "c": some_ids(33, 3)})
        out += steps.encode({"d": some_ids(2, 1)}, capture if kind == "encoder" else None)
    if kind != "encoder":
        sources = ("a", "a", "c") if kind == "encoder-decoder" else ()
        out += steps.step({"x": some_ids(60, 4), "y": some_ids(1, 4), "z": some_ids(5, 5)}, sources)
        out += steps.step({"x": [3], "y": [4], "z": [5]}, sources)
        out += steps.step({"z": some_ids(40, 6), "x": [1]}, sources[1:])
        out += steps.step({"y": [4]}, sources[:1])
        out += steps.step({"x": some_ids(7, 3), "y": [9]}, sources[:2], capture)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_against_the_oracle(name: str, dtype: str, isa: str) -> None:
    expected = whole_story(make_reference(name, dtype))
    found = whole_story(make(name, dtype, isa=isa))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_near(one, other, dtype, f"text {i}")
        assert np.abs(other).max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_threads_do_not_matter(name: str, dtype: str, isa: str) -> None:
    one, two, three = (whole_story(make(name, dtype, threads, isa)) for threads in (1, 2, 3))
    for a, b, c in zip(one, two, three, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_bfloat16_does_not_depend_on_the_isa() -> None:
    isas = [isa for isa in common_order_isas() if isa != "scalar"]
    for name in NETWORKS:
        stories = [whole_story(make(name, "bfloat16", isa=isa)) for isa in isas]
        for found in stories[1:]:
            for one, other in zip(found, stories[0], strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_and_chunks_do_not_matter(dtype: str) -> None:
    runner = make("decoder", dtype)
    texts = {
        "a": some_ids(200, 1),
        "b": some_ids(3, 2),
        "c": some_ids(215, 3),
    }  # more rows than an expert takes
    together = Steps(runner).step(texts)
    for expected, ids in zip(together, texts.values(), strict=True):
        np.testing.assert_array_equal(Steps(runner).step({"one": ids})[0], expected)
        for size in (1, 4, 37):
            steps = Steps(runner)
            parts = [steps.step({"one": ids[i : i + size]})[0] for i in range(0, len(ids), size)]
            np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_are_each_texts_own(dtype: str) -> None:
    """Encoded alone or together, read by one text or by beams that share a source, in pieces or not."""
    runner = make("encoder-decoder", dtype)
    steps, alone = Steps(runner), Steps(runner)
    texts = {"a": some_ids(70, 1), "b": some_ids(2, 2), "c": some_ids(33, 3)}
    for name, rows in zip(texts, steps.encode(texts), strict=True):
        np.testing.assert_array_equal(alone.encode({name: texts[name]})[0], rows)
    outputs, sources = {str(i): some_ids(3 + i, i) for i in range(20)}, ["a"] * 9 + ["b"] * 2 + ["c", "a"] * 4 + ["c"]
    together = steps.step(outputs, sources)
    for (name, ids), source, expected in zip(outputs.items(), sources, together, strict=True):
        first = alone.step({name: ids[:1]}, [source])[0]
        rest = alone.step({name: ids[1:]}, [source])[0]
        np.testing.assert_array_equal(np.concatenate([first, rest]), expected)
    assert not np.allclose(steps.step({"one": [5]}, ["a"])[0], steps.step({"other": [5]}, ["b"])[0], atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_captures(name: str, dtype: str) -> None:
    """Every buffer and all attention weights are the oracle's, and the result is what it is without them."""
    runner = make(name, dtype)
    ops = runner.program.ops
    buffers = tuple(op.out.name for op in ops if not isinstance(op, StoreCross))
    attentions = tuple(op.out.name for op in ops if isinstance(op, (Attention, CrossAttention)))
    found, expected = Capture(buffers, attentions), Capture(buffers, attentions)
    captured, plain = whole_story(runner, found), whole_story(runner)
    for one, other in zip(captured, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    whole_story(make_reference(name, dtype), expected)
    assert list(found.values) == list(buffers)
    assert list(found.weights) == list(attentions)
    for buffer in buffers:
        assert_near(found.values[buffer], expected.values[buffer], dtype, buffer)
    for op in attentions:
        for one, other in zip(found.weights[op], expected.weights[op], strict=True):
            assert_near(one, other, dtype, op)
            assert np.array_equal(one == 0, other == 0)  # hidden keys, and no others


@pytest.mark.parametrize("dtype", DTYPES)
def test_summaries(dtype: str, isa: str) -> None:
    """Maxima and sums of every 64 logits; the same bits whatever the threads and neighbours, and the same logits."""
    texts = {"a": some_ids(70, 1), "b": some_ids(2, 2), "c": [3]}
    for threads in (1, 2, 3):
        runner, summary = make("decoder", dtype, threads, isa), Summary()
        logits = Steps(runner).step(texts, summary=summary)
        rows = np.concatenate(logits)
        assert summary.blocks.shape == (73, -(-VOCAB // 64), 2)
        for i in range(summary.blocks.shape[1]):
            block = rows[:, 64 * i : 64 * i + 64].astype(np.float64)
            highest = block.max(axis=1, keepdims=True)
            np.testing.assert_array_equal(summary.blocks[:, i, 0], highest[:, 0])
            np.testing.assert_allclose(summary.blocks[:, i, 1], np.exp(block - highest).sum(axis=1), rtol=1e-6)
        blocks = summary.blocks.copy()
        np.testing.assert_array_equal(np.concatenate(Steps(runner).step(texts)), rows)
        Steps(runner).step({"b": texts["b"]}, summary=summary)
        np.testing.assert_array_equal(summary.blocks, blocks[70:72])
        if threads == 1:
            expected = blocks
        np.testing.assert_array_equal(blocks, expected)


def test_summaries_of_the_oracle() -> None:
    found, expected = Summary(), Summary()
    for runner, summary in ((make("decoder", "float32"), found), (make_reference("decoder", "float32"), expected)):
        Steps(runner).step({"a": some_ids(5, 1)}, summary=summary)
    np.testing.assert_allclose(found.blocks, expected.blocks, rtol=1e-4, atol=1e-4)


def test_only_logits_are_summarised() -> None:
    runner = make("encoder-decoder", "float32")
    batch = Batch(*(np.array(x, np.int32) for x in ([1], [0], [0, 1], [1], [[0]], [0])))
    cache = runner.new_cache("encode")
    cache.allocate()
    with pytest.raises(ArrayError, match=r"summary.*encode"):
        runner.run(batch, cache, program="encode", summary=Summary())


@pytest.mark.parametrize("name", NETWORKS)
def test_timings(name: str) -> None:
    """Every operation of the steps that were timed, as often as it ran, with the bytes it read; none when off."""
    runner = make(name, "bfloat16")
    assert runner.timings() == []
    expected = whole_story(runner)
    runner.profile(True)
    for one, other in zip(whole_story(runner), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    runner.profile(False)
    timings = runner.timings()
    whole_story(runner)
    assert runner.timings() == timings
    for kind, program in runner.network.programs.items():
        found = {timing.op: timing for timing in timings if timing.program == kind}
        assert found["set-up"].calls == found["finish"].calls == (2 if kind == "encode" else 5)
        for op in program.ops:
            timing = found.pop(op_name(op))
            assert 0 <= timing.seconds < 60
            assert 0 <= timing.waited < 60
            assert timing.calls <= 5
            if isinstance(op, Linear):
                assert timing.bytes == timing.calls * (timing.bytes // timing.calls) > 0
        assert set(found) == {"set-up", "finish"}


def test_captures_by_unknown_names_are_refused() -> None:
    runner = make("encoder", "float32")
    with pytest.raises(ArrayError, match=r"'nonsense'.*listing|listing.*'nonsense'"):
        Steps(runner).encode({"a": [1, 2]}, Capture(buffers=("nonsense",)))
    with pytest.raises(ArrayError, match="weights are those of attention"):
        Steps(runner).encode({"a": [1, 2]}, Capture(attentions=("pooled",)))


def test_shared_weights_are_packed_once() -> None:
    network = encoder_decoder()
    tensors = RandomTensors(network)
    CpuRunner(network, tensors, dtype="bfloat16", num_threads=1)
    assert all("table.weight" in [s.name for s in program.sources()] for program in network.programs.values())
    assert sorted(tensors.read) == sorted(set(tensors.read)) == sorted(tensors.released)


def test_programs_and_caches_are_told_apart() -> None:
    runner = make("encoder", "float32")
    assert runner.program is runner.network.encode
    with pytest.raises(ArrayError, match="'encode', got 'step'"):
        runner.new_cache()
    with pytest.raises(ArrayError, match="no cross-attention"):
        runner.new_cross_cache()
    runner = make("encoder-decoder", "float32")
    steps = Steps(runner)
    steps.encode({"a": [1, 2, 3]})
    steps.caches["step"] = runner.new_cache("encode")
    with pytest.raises(ArrayError, match="another model or program"):
        steps.step({"x": [1]}, ["a"])
    steps = Steps(runner)
    steps.encode({"a": [1, 2, 3]})
    with pytest.raises(ArrayError, match="cross_table"):
        steps.step({"x": [1]})
    steps.cross = None
    with pytest.raises(ArrayError, match="needs their cache"):
        steps.step({"y": [1]}, ["a"])
    steps.cross = runner.new_cross_cache()
    with pytest.raises(ArrayError, match="cross block"):
        steps.step({"z": [1]}, ["a"])


def test_wrong_token_types_and_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make("encoder", "float32")
    run = runner.run
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"token_types": np.array([0, 3], np.int32)}, PromptError, r"\[0, 3\), got 3 in row 1"),
        ({"token_types": np.array([0], np.int32)}, ArrayError, "token_types"),
        (
            {"positions": np.array([1, 2], np.int32), "context": np.array([3], np.int32)},
            ArrayError,
            "must be whole",
        ),
    ]
    for changes, error, message in cases:

        def changed(batch: Batch, cache: Any, changes: dict[str, Any] = changes, **options: Any) -> np.ndarray:
            return run(dataclasses.replace(batch, **changes), cache, **options)

        monkeypatch.setattr(runner, "run", changed)
        with pytest.raises(error, match=message):
            Steps(runner).encode({"a": [1, 2]})


def test_short_texts_look_up_few_distances() -> None:
    """Terms of 150 places a head, in three panels, of which short texts want one or two: as the oracle, and bitwise
    the same beside a text that wants them all."""
    r = Recorder("toy", vocab_size=VOCAB, max_positions=POSITIONS, causal=False)
    x = r.embed("embed", matrix("table", VOCAB, D))
    with r.layer(0):
        qkv = r.linear("qkv", x, matrix("qkv", 3 * H * E, D))
        terms = [by_head(r, name, qkv, H, 150, E, begin=begin) for name, begin in (("c2p", 0), ("p2c", H * E))]
        places = tuple(range(150))
        bias = Disentangled(*terms, H, 150, -75, places, places[::-1])
        shape = {"num_heads": H, "num_kv_heads": H, "head_dim": E}
        x = r.linear(
            "out", r.attention("attn", qkv, **shape, scale=0.3, bias=bias), matrix("out", D, H * E), residual=x
        )
    network = Network("toy", encode=r.finish(r.select("last", x)))
    texts = {str(length): some_ids(length, length) for length in (1, 5, 40, 70, 110)}
    oracle = Steps(ReferenceRunner(network, RandomTensors(network))).encode(texts)
    for threads in (1, 2):
        runner = CpuRunner(network, RandomTensors(network), dtype="float32", num_threads=threads)
        together = Steps(runner).encode(texts)
        for (name, text), one, expected in zip(texts.items(), together, oracle, strict=True):
            assert_near(one, expected, "float32", name)
            np.testing.assert_array_equal(Steps(runner).encode({name: text})[0], one)
