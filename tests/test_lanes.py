"""Steps of many sequences: summaries of logits give the same bits as the logits, lanes choose what policies choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from engine_doubles import DoubleRunner
from numpy.typing import NDArray
from test_engine import prompt_of

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.decode import _search
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Policy, make_policy
from pyllm.devices.cpu import CpuRunner
from pyllm.engine.engine import Engine
from pyllm.errors import ArrayError, NumericError
from pyllm.models import bind
from pyllm.program.batch import CHOICE, CUT, CUT_BY_K, Batch, Summary

Floats = NDArray[np.float32]
CUTS = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.3, 40, 0.9, 0.0),
    (0.8, 0, 0.9, 0.0),
    (1.0, 0, 1.0, 0.05),
]


def summary_of(rows: Floats, scale: float = 1.0) -> Floats:
    """Summary.blocks of rows [n, V], in float64."""
    width = -(-rows.shape[1] // 64) * 64
    padded = np.full((len(rows), width), -np.inf)
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), -1, 64)
    with np.errstate(invalid="ignore"):
        highest = blocks.max(axis=2)
        sums = np.exp((blocks - highest[:, :, None]) * scale).sum(axis=2)
    return np.stack([highest, sums], axis=2).astype(np.float32)


@pytest.fixture(params=range(_search.num_kernels()))
def kernels(request: pytest.FixtureRequest) -> Iterator[int]:
    _search.use_kernels(request.param)
    yield request.param
    _search.use_kernels(_search.num_kernels() - 1)


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65, 700, 5001])
def test_summaries_say_what_the_rows_say(vocab_size: int, kernels: int) -> None:
    rows = (3 * np.random.RandomState(vocab_size).standard_normal((4, vocab_size))).astype(np.float32)
    rows[1] = np.round(rows[1])  # many equal ones
    rows[2, vocab_size // 2 :] = -np.inf
    rows[3, :-1] = -np.inf
    blocks = summary_of(rows)
    for r in range(4):
        assert _search.best_token(rows[r:], blocks[r:].copy()) == _search.argmax(rows[r]) == int(rows[r].argmax())
    running = [0.0, -1.0, -0.5, -3.0]
    for k in (1, 8, vocab_size + 3):
        found = _search.best_continuations(rows, running, k, False, blocks)
        assert found == _search.best_continuations(rows, running, k, False)
        flat = (rows + np.array(running, np.float32)[:, None]).reshape(-1)
        order = np.lexsort((np.arange(len(flat)), -flat))[: min(k, len(flat))]
        expected = [(float(flat[i]), i // vocab_size, i % vocab_size) for i in order.tolist()]
        assert [one for one in found or [] if one[0] > -np.inf] == [one for one in expected if one[0] > -np.inf]
    for cuts in CUTS:
        scale = 1 / cuts[0]
        for u in (0.0, 0.3, 0.7, 0.999):
            plain = _search.sample(rows, *cuts, [u] * 4)
            assert _search.sample(rows, *cuts, [u] * 4, summary_of(rows, scale), scale) == plain
            assert _search.sample(rows, *cuts, [u] * 4, blocks, 1.0) == plain


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_summaries_of_rows_without_a_softmax(odd: float, kernels: int) -> None:
    for vocab_size, at in ((5, 2), (300, 0), (300, 299), (300, 130)):
        rows = np.full((1, vocab_size), -np.inf, np.float32) if at == 130 else np.ones((1, vocab_size), np.float32)
        rows[0, at] = odd
        blocks = summary_of(rows)
        if np.isnan(odd):
            blocks[0, at // 64, 0] = 1.0  # a maximum may pass a NaN over, a sum never does
            assert _search.best_token(rows, blocks) == -1
        assert _search.best_continuations(rows, [0.0], 2, True, blocks) is None
        for cuts in CUTS:
            assert _search.sample(rows, *cuts, [0.5], blocks) == [-1]


def test_a_summary_must_fit() -> None:
    rows = np.zeros((2, 100), np.float32)
    for shape in ((1, 2, 2), (2, 1, 2), (2, 2, 1)):
        with pytest.raises(ValueError, match="summary"):
            _search.best_token(rows, np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match="summary"):
            _search.sample(rows, *CUTS[0], [0.5, 0.5], np.zeros(shape, np.float32))


# ---- the engine


class Watched:
    """A device whose summaries are noted, and searches with and without them compared."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.vocab_size, self.max_positions, self.program = runner.vocab_size, runner.max_positions, runner.program
        self.wanted: list[Summary | None] = []

    def new_cache(self, program: str = "step") -> Any:
        return self.runner.new_cache(program)

    def run(self, batch: Batch, cache: Any, *, summary: Summary | None = None, **rest: Any) -> Floats:
        logits: Floats = self.runner.run(batch, cache, summary=summary, **rest)
        self.wanted.append(summary)
        if summary is not None and summary.scales is None and len(logits):
            assert _same(logits, summary.blocks, 1.0)
        elif summary is not None:
            for row, scale in enumerate(summary.scales if summary.scales is not None else ()):
                assert _same(logits[row : row + 1], summary.blocks[row : row + 1], float(scale))
        return logits


def _same(logits: Floats, blocks: Floats, scale: float) -> bool:
    """Bit for bit: log-probabilities and draws from a device's summary are those from its logits."""
    running = [0.0] * len(logits)
    if scale == 0:
        assert [_search.best_token(logits[r:], blocks[r:]) for r in range(len(logits))] == logits.argmax(
            axis=1
        ).tolist()
        return True
    if scale == 1:
        plain = _search.best_continuations(logits, running, 9, True)
        assert _search.best_continuations(logits, running, 9, True, blocks) == plain
    uniforms = np.linspace(0, 0.999, len(logits)).tolist()
    cuts = (1 / scale, 0, 1.0, 0.0)
    return _search.sample(logits, *cuts, uniforms, blocks, scale) == _search.sample(logits, *cuts, uniforms)


CASES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3},
    {"do_sample": True, "seed": 3, "temperature": 0.7, "top_k": 0},
    {"do_sample": True, "seed": 3, "temperature": 0.8, "top_k": 0, "top_p": 0.8, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"repetition_penalty": 1.2},
    {"do_sample": True, "seed": 4, "top_k": 9, "logprobs": 1},
    {"do_sample": True, "seed": 4, "max_time": 1000.0},
]


def policies_of(vocab_size: int, end: int) -> list[Policy]:
    """Different searches, lengths and ends, beside each other."""
    return [
        make_policy(
            [token % vocab_size for token in prompt_of(5 + 3 * index)],
            GenerationOptions.build({}, {"max_new_tokens": 20 + 5 * (index % 3), "eos_token_id": [end], **options}),
            vocab_size=vocab_size,
        )
        for index, options in enumerate([*CASES, *CASES[:4]])
    ]


def drive(engine: Engine, policies: list[Policy], late: int = 4) -> None:
    """The last `late` of them join while the others run."""
    for policy in policies[: len(policies) - late]:
        engine.add(policy)
    for step in range(10_000):
        if step == 7:
            for policy in policies[len(policies) - late :]:
                engine.add(policy)
        if not engine.busy:
            break
        engine.step()


def by_hand(policy: Policy, runner: DoubleRunner) -> None:
    live = [list(policy.prompt_ids)]
    while not policy.finished:
        step = policy.advance(np.stack([runner.logits(tokens) for tokens in live]))
        live = [[*live[p], t] for p, t in zip(step.parents, step.tokens, strict=True)]


def test_lanes_choose_what_policies_choose() -> None:
    runner = DoubleRunner()
    together, alone = policies_of(23, 5), policies_of(23, 5)
    with Engine(runner) as engine:
        drive(engine, together)
        assert engine.cache.blocks_in_use == 0
    for policy, other in zip(together, alone, strict=True):
        by_hand(other, runner)
        for one, same in zip(policy.results(), other.results(), strict=True):
            assert (one.token_ids, one.score, one.finish_reason) == (same.token_ids, same.score, same.finish_reason)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "default"])  # gemma2 caps its logits
def test_engines_with_summaries_find_the_same(name: str) -> None:
    with pyllm.load(pyllm.default_model() if name == "default" else toy_folder(name), dtype="float32") as model:
        watched, size = Watched(model._open_runner()), model.program.vocab_size
        together, plain = policies_of(size, 5), policies_of(size, 5)
        with Engine(watched) as engine:
            drive(engine, together)
        assert any(summary is not None for summary in watched.wanted)
        for policy in plain:
            runner = Watched(model._open_runner())
            runner.run = lambda batch, cache: model._open_runner().run(batch, cache)  # type: ignore[method-assign]
            with Engine(runner) as engine:
                drive(engine, [policy], late=0)
        for policy, other in zip(together, plain, strict=True):
            for one, same in zip(policy.results(), other.results(), strict=True):
                assert (one.token_ids, one.score, one.finish_reason) == (same.token_ids, same.score, same.finish_reason)


@pytest.mark.parametrize("options", [CASES[5], {"output_scores": True}, {"num_beams": 2, "do_sample": True}], ids=str)
def test_nobody_asks_for_a_summary_in_vain(options: dict[str, Any]) -> None:
    with pyllm.load(toy_folder("gpt2")) as model:
        watched = Watched(model._open_runner())
        chosen = GenerationOptions.build({}, {"max_new_tokens": 4, **options})
        with Engine(watched) as engine:
            drive(engine, [make_policy([1, 2], chosen, vocab_size=model.program.vocab_size)], late=0)
        assert watched.wanted == [None] * 4


def test_lanes_say_how_to_choose_and_take_what_was_chosen() -> None:
    lanes = _search.Lanes()
    histories = [[1, 2, 3], [1, 2, 3, 4], [5, 6]]
    lanes.add(0, histories[0], frozenset([9]), 2, 50, None, 0, 0, 0)
    lanes.add(2, histories[1], frozenset([9]), 2, 50, (0.5, 7, 1.0, 0.25), 2**63 + 1, 3, 4)
    entries = np.zeros(4, CHOICE)
    assert lanes.choices(entries.view(np.uint8), 100) == CUT_BY_K
    assert entries["temperature"].tolist() == [0, 0, 0.5, 0]
    assert entries[2].tolist() == (0.5, 1.0, 0.25, 2**63 + 1, 7, 3, 4, 2)
    assert lanes.choices(entries.view(np.uint8), 7) == CUT_BY_K  # min-p; as many as there are cut nothing
    assert entries["top_k"][2] == 0
    lanes.add(3, histories[2], frozenset([9]), 1, 3, (1.0, 0, 0.9, 0.0), 1, 0, 0)
    assert lanes.choices(entries.view(np.uint8), 7) == CUT
    assert lanes.take(np.array([4, 5, 6, -1], np.int32)) == (None, [2])
    assert histories == [[1, 2, 3], [1, 2, 3, 4], [5, 6]]
    assert lanes.take(np.array([9, 5, 6, 7], np.int32)) == ([9, 6, 7], [0, 2])
    assert histories == [[1, 2, 3, 9], [1, 2, 3, 4, 6], [5, 6, 7]]
    with pytest.raises(IndexError, match="row 3 of 3"):
        lanes.take(np.zeros(3, np.int32))
    with pytest.raises(IndexError, match="row 2 of 2"):
        lanes.choices(entries[:2].view(np.uint8), 7)


class Damaged(DoubleRunner):
    def logits(self, tokens: list[int]) -> Floats:
        row = super().logits(tokens)
        return np.full_like(row, np.nan) if len(tokens) == 12 else row


@pytest.mark.parametrize("options", CASES[:2], ids=str)
def test_lanes_report_damaged_logits(options: dict[str, Any]) -> None:
    chosen = GenerationOptions.build({}, {"max_new_tokens": 20, **options})
    policies = [make_policy([3, index], chosen, vocab_size=23) for index in range(3)]
    with Engine(Damaged()) as engine, pytest.raises(NumericError, match="NaN at position 12"):
        drive(engine, policies, late=0)


def test_scales_of_summaries(isa: str) -> None:
    """Of each row its own; 0 leaves numbers of columns, and anything but a number as no number."""
    with pyllm.load(toy_folder("gpt2"), dtype="float32") as model:
        runner = CpuRunner(model.network, bind(model.network, open_checkpoint(model.folder)), dtype="float32", isa=isa)
        size = model.program.vocab_size
        batch = Batch(
            ids=np.arange(3, dtype=np.int32),
            positions=np.arange(3, dtype=np.int32),
            starts=np.array([0, 3], np.int32),
            context=np.array([3], np.int32),
            block_table=np.array([[0]], np.int32),
            logit_rows=np.arange(3, dtype=np.int32),
        )
        cache = runner.new_cache()
        batch.block_table[0, 0] = cache.allocate()
        summary = Summary(scales=np.array([0.0, 1.0, 0.6], np.float32))
        logits = runner.run(batch, cache, summary=summary)
        for row, scale in enumerate((0.0, 1.0, 0.6)):
            for block in range(-(-size // 64)):
                values = logits[row, 64 * block : 64 * block + 64].astype(np.float64)
                assert summary.blocks[row, block, 0] == values.max()
                expected = np.sum(np.exp((values - values.max()) * scale))
                assert summary.blocks[row, block, 1] == pytest.approx(expected, rel=1e-5)
        batch.logit_rows = np.zeros(0, np.int32)
        nothing = Summary()
        runner.run(batch, cache, summary=nothing)
        assert nothing.blocks.shape == (0, -(-size // 64), 2)
        batch.logit_rows = np.arange(3, dtype=np.int32)
        for wrong in (
            np.ones(2, np.float32),
            np.ones(3),
            np.array([1, np.nan, 1], np.float32),
            -np.ones(3, np.float32),
        ):
            with pytest.raises(ArrayError, match="scales"):
                runner.run(batch, cache, summary=Summary(scales=wrong))
