"""CudaRunner.run_ahead on every device at hand (cuda_arrays.py): steps whose ids only the device knows give the tokens
of steps one by one, whatever comes in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_runners import chosen_device, recorded_runner  # noqa: F401
from recorded_programs import VOCAB, D, E, H, K, RandomTensors, Steps, matrix, some_ids, vector
from stepping import Stepper

from pyllm import errors
from pyllm.devices.cuda import CudaRunner
from pyllm.program.batch import BLOCK_TOKENS, CHOICE, CUT, CUT_BY_K, UNCUT, Batch, Tokens
from pyllm.program.network import as_network
from pyllm.program.recorder import Recorder


class Broken(RandomTensors):
    """One token leads to NaN."""

    token = 0

    def tensor(self, name: str) -> np.ndarray:
        values = super().tensor(name)
        if name == "table.weight":
            values[self.token] = np.nan
        return values


def small(positions: int = 600, dtype: str = "float32", tensors: type[RandomTensors] = RandomTensors) -> CudaRunner:
    """One layer of attention with rotation, and a head."""
    r = Recorder("decoder", vocab_size=VOCAB, max_positions=positions)
    x = r.embed("embed", matrix("table", VOCAB, D))
    with r.layer(0):
        h = r.rms_norm("norm", x, vector("norm.weight", D), 1e-5)
        qkv = r.linear("qkv", h, matrix("qkv", (H + 2 * K) * E, D))
        rope = r.rotary("rope", [1.0, 0.3, 0.1, 0.03])
        a = r.attention("attend", qkv, num_heads=H, num_kv_heads=K, head_dim=E, scale=0.3, rope=rope)
        x = r.linear("out", a, matrix("out", D, a.cols), residual=x)
    network = as_network(r.finish(r.linear("logits", r.select("last", x), matrix("head", VOCAB, D))))
    return CudaRunner(network, tensors(network), dtype=dtype)


def choices_of(rows: int, **fields: Any) -> np.ndarray:
    choices = np.zeros(rows, CHOICE)
    choices["top_p"] = 1
    choices["seed"] = 11
    choices["sequence"] = np.arange(rows)
    for name, value in fields.items():
        choices[name] = value
    return choices


KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "greedy": ({}, UNCUT),
    "drawn": ({"temperature": 1.3}, UNCUT),
    "top_k": ({"temperature": 0.8, "top_k": 9, "top_p": 0.9}, CUT_BY_K),
    "top_p": ({"temperature": 2.0, "top_p": 0.7, "min_p": 0.01}, CUT),
}


class Decode:
    """Texts of one cache, decoded token by token or ahead."""

    def __init__(self, runner: CudaRunner, prompts: list[list[int]], kind: str) -> None:
        self.runner = runner
        self.fields, self.cuts = KINDS[kind]
        self.steps = Stepper(runner)
        self.names = [str(i) for i in range(len(prompts))]
        self.steps.step(dict(zip(self.names, prompts, strict=True)))
        self.step = 0
        self.tokens = [prompt[-1] for prompt in prompts]  # any ids would do

    def one_by_one(self, count: int) -> list[list[int]]:
        found = []
        for _ in range(count):
            rows = self.runner.run(self._batch(), self.steps.cache)
            self.tokens = self.runner.device_rows(rows).choose(self._choices(), self.cuts).tolist()
            found.append(self.tokens)
        return found

    def launch(self, after: Tokens | None) -> Tokens:
        """The next step; `after` None: its ids are self.tokens."""
        batch = self._batch()
        if after is not None:
            batch.ids[:] = -1  # nobody reads them
        return self.runner.run_ahead(batch, self.steps.cache, self._choices(), self.cuts, after=after)

    def ahead(self, count: int) -> list[list[int]]:
        """Each step is launched before the tokens of the one before it are read."""
        found, flight = [], self.launch(None)
        for left in range(count, 0, -1):
            following = self.launch(flight) if left > 1 else flight
            found.append(flight.wait().tolist())
            flight = following
        self.tokens = found[-1]
        return found

    def _batch(self) -> Batch:
        return self.steps.batch({name: [token] for name, token in zip(self.names, self.tokens, strict=True)})

    def _choices(self) -> np.ndarray:
        self.step += 1
        return choices_of(len(self.names), step=self.step, **self.fields)


def prompts_of(count: int, first: int = 3) -> list[list[int]]:
    return [some_ids(first + i % 5, i + 1) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_those_of_steps_one_by_one(kind: str, dtype: str) -> None:
    """Across new blocks (32 tokens) and, the longer text, into more keys than a graph was made for (256)."""
    runner = small(dtype=dtype)
    prompts = [some_ids(249, 5), *prompts_of(2, 26)]
    expected = Decode(runner, prompts, kind).one_by_one(12)
    assert Decode(runner, prompts, kind).ahead(12) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1
    assert runner.graphs >= 2


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9, 17, 25, 33, 49, 65, 97, 128])
def test_sizes_of_buckets(rows: int) -> None:
    runner, prompts = small(), prompts_of(rows)
    runner.set_buckets(False)
    expected = Decode(runner, prompts, "drawn").one_by_one(3)
    assert runner.rows_ahead == 0
    runner.set_buckets(True)
    assert runner.rows_ahead == 128
    assert Decode(runner, prompts, "drawn").ahead(3) == expected


def test_a_steady_step_sends_nothing() -> None:
    runner = small()
    decode = Decode(runner, prompts_of(3, 4), "top_k")
    flight = decode.launch(None)
    sent = [runner.sent_bytes]
    while decode.steps.lengths["0"] < BLOCK_TOKENS + 4:
        flight = decode.launch(flight)
        sent.append(runner.sent_bytes)
    grown = np.diff(sent).tolist()
    tables = [step for step, bytes_ in enumerate(grown) if bytes_]
    assert len(tables) == 3  # each text's second block, in steps of their own
    assert max(grown) < 256 * 8  # addresses alone
    flight.wait()


def test_other_steps_in_between() -> None:
    """Two caches take turns, prompts and other decode steps run in between: the device holds another step's state, and
    the ids come from what was chosen."""
    runner = small()
    first, second = prompts_of(3, 20), prompts_of(3, 40)
    expected = [Decode(runner, prompts, "drawn").one_by_one(8) for prompts in (first, second)]
    decodes = [Decode(runner, prompts, "drawn") for prompts in (first, second)]
    flights = [decode.launch(None) for decode in decodes]
    found: list[list[list[int]]] = [[], []]
    for step in range(7):
        following = []
        for i in (0, 1):
            following.append(decodes[i].launch(flights[i]))
            found[i].append(flights[i].wait().tolist())
            assert flights[i].wait().tolist() == found[i][-1]
        flights = following
        if step % 3 == 1:
            Stepper(runner).step({"other": some_ids(50, step)})
        if step == 4:
            runner.set_buckets(False)
            Decode(runner, prompts_of(3, 20), "greedy").one_by_one(1)
            runner.set_buckets(True)
    assert [[*steps, flight.wait().tolist()] for steps, flight in zip(found, flights, strict=True)] == expected


def test_a_larger_arena_in_between() -> None:
    """Graphs and the device's copy of the step are gone with the memory; flights are not."""
    runner = small(6000)
    prompts = prompts_of(2, 5)
    expected = Decode(runner, prompts, "drawn").one_by_one(5)
    decode = Decode(runner, prompts, "drawn")
    flight = decode.launch(None)
    found = []
    for step in range(4):
        if step == 2:
            before = runner.memory_report()["activations"]
            Stepper(runner).step({"long": some_ids(4500, 3)})
            assert runner.memory_report()["activations"] > before
        following = decode.launch(flight)
        found.append(flight.wait().tolist())
        flight = following
    assert [*found, flight.wait().tolist()] == expected


def test_decoders_with_sources() -> None:
    runner = recorded_runner("encoder-decoder")

    def tokens(ahead: bool) -> list[list[int]]:
        steps = Steps(runner)
        steps.encode({"one": some_ids(11, 1), "two": some_ids(40, 2)})
        cache, blocks = steps.caches["step"], [[steps.caches["step"].allocate()] for _ in range(2)]
        found, ids, flight = [], [1, 2], None
        for step in range(6):
            positions = np.full(2, step, np.int32)
            batch = Batch(
                ids=np.array(ids, np.int32),
                positions=positions,
                starts=np.arange(3, dtype=np.int32),
                context=positions + 1,
                block_table=np.array(blocks, np.int32),
                logit_rows=np.arange(2, dtype=np.int32),
                cross_table=np.array([[*steps.sources["one"][0], 0], steps.sources["two"][0]], np.int32),
                cross_context=np.array([11, 40], np.int32),
            )
            choices = choices_of(2, temperature=1.5, step=step)
            if ahead:
                flight = runner.run_ahead(batch, cache, choices, UNCUT, cross=steps.cross, after=flight)
                found.append(flight)
            else:
                rows = runner.device_rows(runner.run(batch, cache, cross=steps.cross))
                ids = rows.choose(choices, UNCUT).tolist()
                found.append(ids)
        return [flight.wait().tolist() for flight in found] if ahead else found

    assert tokens(True) == tokens(False)


def test_rows_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in one text's logits: -1 there, and the others go on."""
    prompts = prompts_of(3, 4)
    expected = Decode(small(), prompts, "greedy").one_by_one(3)
    met = {token for tokens in (*prompts, *expected) for token in tokens}
    monkeypatch.setattr(Broken, "token", min(set(range(VOCAB)) - met))
    decode = Decode(small(tensors=Broken), prompts, "greedy")
    decode.tokens[1] = Broken.token
    found = decode.ahead(3)
    assert [tokens[1] for tokens in found] == [-1, -1, -1]
    assert [tokens[::2] for tokens in found] == [tokens[::2] for tokens in expected]


def test_wrong_steps_change_nothing() -> None:
    runner = small(positions=40)
    decode, prompts = Decode(runner, prompts_of(2, 30), "greedy"), prompts_of(2, 30)
    batch, cache = decode._batch(), decode.steps.cache

    def refused(message: str, kind: type[Exception] = errors.ArrayError, **options: Any) -> None:
        given = {"choices": choices_of(2), "cuts": UNCUT, **options}
        with pytest.raises(kind, match=message):
            runner.run_ahead(given.pop("batch", batch), cache, **given)

    refused("one for each of the 2 outputs", choices=choices_of(3))
    refused("contiguous", choices=np.zeros(2, np.int32))
    refused("cuts 0, 1 or 2", cuts=3)
    two = Stepper(runner)
    refused("one sequence's next token", batch=two.batch({"x": [1, 2]}))
    refused("after 2; call run", batch=two.batch({"x": [1]}), choices=choices_of(1), after=decode.launch(None))
    wrong = Decode(runner, prompts, "greedy")._batch()
    wrong.positions[0], wrong.context[0] = 40, 41
    refused("40", kind=errors.ContextLengthError, batch=wrong)
    expected = Decode(runner, prompts, "greedy").one_by_one(4)
    assert Decode(runner, prompts, "greedy").ahead(4) == expected
