"""Decoding that runs ahead of what the host has read: the same texts, ends, errors and blocks as step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_doubles import DoubleRunner
from lazy_device import LazyRunner
from test_engine import prompt_of
from test_lanes import policies_of

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Policy, make_policy
from pyllm.engine.engine import Engine
from pyllm.engine.sources import Source
from pyllm.engine.streams import new_tokens
from pyllm.errors import NumericError, OutOfMemoryError

CUTS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "temperature": 0.7, "top_k": 5},
    {"do_sample": True, "temperature": 1.4, "top_k": 40},  # more than there are
    {"do_sample": True, "top_k": 9, "top_p": 0.8},
    {"do_sample": True, "top_k": 0, "top_p": 0.9},
    {"do_sample": True, "top_k": 0, "min_p": 0.1},
]


def policy_of(index: int = 0, **options: Any) -> Policy:
    chosen = GenerationOptions.build({}, {"max_new_tokens": 40, "eos_token_id": [5], "seed": 3, **options})
    return make_policy([t % 23 for t in prompt_of(3 + index)], chosen, vocab_size=23, seed_index=index)


def outcome(policy: Policy) -> list[tuple[Any, ...]]:
    return [(one.token_ids, one.score, one.finish_reason) for one in policy.results()]


def drive(engine: Engine, policies: list[Policy]) -> None:
    for policy in policies:
        engine.add(policy)
    while engine.busy:
        engine.step()
    assert engine.cache.blocks_in_use == 0


@pytest.mark.parametrize("options", [*[[one] for one in CUTS], CUTS], ids=str)
def test_running_ahead_changes_no_text(options: list[dict[str, Any]]) -> None:
    """Sequences end at different steps, by end tokens and by length."""

    def make() -> list[Policy]:
        lengths = (1, 2, 33, 40, 70)
        return [
            policy_of(3 * i + k, max_new_tokens=length, **each)
            for i, each in enumerate(options)
            for k, length in enumerate(lengths)
        ]

    ahead, plain, runner = make(), make(), LazyRunner()
    with Engine(runner) as engine:
        drive(engine, ahead)
    with Engine(DoubleRunner()) as engine:
        drive(engine, plain)
    assert [outcome(policy) for policy in ahead] == [outcome(policy) for policy in plain]
    assert {reason for policy in ahead for _, _, reason in outcome(policy)} == {"stop", "length"}
    assert runner.followed > 5


def test_a_text_alone_takes_one_step_a_token() -> None:
    """By length nothing is launched in vain; every step but the prompt's is launched, all but one ahead."""
    policy, runner = policy_of(eos_token_id=[], max_new_tokens=50), LazyRunner()
    with Engine(runner) as engine:
        drive(engine, [policy])
    assert (len(runner.batches), runner.launched, runner.followed) == (50, 49, 48)


def test_an_end_token_costs_one_step() -> None:
    alone = policy_of()
    with Engine(DoubleRunner()) as engine:
        drive(engine, [alone])
    ((tokens, _, reason),) = outcome(alone)
    assert reason == "stop"
    policy, runner = policy_of(), LazyRunner()
    with Engine(runner) as engine:
        drive(engine, [policy])
    assert (runner.launched, runner.followed) == (len(tokens), len(tokens) - 1)
    assert outcome(policy) == outcome(alone)


def test_streams_give_every_token_once_and_at_once() -> None:
    """What a step has chosen is given by it: one step is in the air, no more."""
    for options in CUTS:
        policy, other, runner = policy_of(**options), policy_of(**options), LazyRunner()
        seen: list[int] = []
        with Engine(runner) as engine:
            for tokens in new_tokens(engine, policy):
                assert len(tokens) == 1
                seen += tokens
                assert runner.launched <= len(seen)
        with Engine(DoubleRunner()) as engine:
            drive(engine, [other])
        assert tuple(seen) == tuple(outcome(other)[0][0])


def test_a_stream_that_is_left() -> None:
    runner = LazyRunner()
    with Engine(runner) as engine:
        stream = new_tokens(engine, policy_of(eos_token_id=[]))
        for _ in range(5):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert runner.launched == 5
    assert engine.cache.blocks_in_use == 0
    assert not engine.busy
    with Engine(runner) as again:
        drive(again, [policy_of()])


def test_every_search_beside_the_others() -> None:
    together, alone, runner = policies_of(23, 5), policies_of(23, 5), LazyRunner()
    with Engine(runner) as engine:
        drive(engine, together)
    with Engine(DoubleRunner()) as engine:
        drive(engine, alone)
    assert [outcome(policy) for policy in together] == [outcome(policy) for policy in alone]


MIXED: list[dict[str, Any]] = [
    *CUTS * 3,
    {"num_beams": 3},
    {"do_sample": True, "num_return_sequences": 3},
    {"repetition_penalty": 1.3},
    {"prompt_lookup_num_tokens": 3},
    {"max_time": 1000.0},
]


@pytest.mark.parametrize("seed", range(30))
def test_random_schedules(seed: int) -> None:
    """Groups come and go, texts are scored in between, steps are of few rows."""
    pick, runner = random.Random(seed), LazyRunner()
    runner.rows_ahead = pick.choice([0, 1, 3, 128, 128])
    runner.refuse = {pick.randrange(200) for _ in range(pick.choice([0, 3]))}
    simple = seed % 2 == 0  # else longer stretches with nothing but choices
    kinds = MIXED if simple else CUTS
    made = [(i, {"max_new_tokens": pick.randint(1, 70), **pick.choice(kinds)}) for i in range(14)]
    waiting = [policy_of(i, **options) for i, options in made]
    done, dropped, refused = list(waiting), set[int](), False
    with Engine(runner, rows_per_step=pick.choice([4, 16, 512])) as engine:
        groups = [engine.add(waiting.pop(0))]
        while (engine.busy or waiting) and not refused:
            if waiting and pick.random() < 0.15:
                groups.append(engine.add(waiting.pop(0)))
            if pick.random() < 0.02 and (running := [one for one in groups if one.slots]):
                gone = pick.choice(running)
                engine.drop(gone)
                dropped.add(id(gone.policy))
            if pick.random() < 0.02:
                assert engine.score([1, 2, 3]).shape == (3, 23)
            try:
                advanced = engine.step()
            except OutOfMemoryError:
                refused = True
            assert refused or all(one.policy.finished == (not one.slots) for one in advanced)
        if not refused:
            assert engine.cache.blocks_in_use == 0
    assert engine.cache.blocks_in_use == 0
    for policy, (i, options) in zip(done, made, strict=True):
        alone = policy_of(i, **options)
        with Engine(DoubleRunner()) as engine:
            drive(engine, [alone])
        if policy.finished:
            assert outcome(policy) == outcome(alone)
        elif policy.options.num_beams == 1:
            assert refused or id(policy) in dropped
            so_far = policy.sequence_tokens(0)
            assert so_far == list(alone.results()[0].token_ids)[: len(so_far)]


@pytest.mark.parametrize("at", [9, 12])
@pytest.mark.parametrize(("wrong", "options"), [(np.nan, CUTS[0]), (np.nan, CUTS[1]), (np.inf, CUTS[1])], ids=str)
def test_damaged_logits_are_reported(at: int, wrong: float, options: dict[str, Any]) -> None:
    """Infinity is damage to a draw; to greedy search it is the largest."""
    first = prompt_of(6)[0] % 23

    def damaged(tokens: list[int]) -> Any:
        row = DoubleRunner.logits(DoubleRunner(), tokens)
        return np.full_like(row, wrong) if len(tokens) == at and tokens[0] == first else row

    messages = []
    for runner in (LazyRunner(), DoubleRunner()):
        runner.logits = damaged  # type: ignore[method-assign]
        policies = [policy_of(index, eos_token_id=[], **options) for index in (3, 0)]
        with Engine(runner) as engine, pytest.raises(NumericError) as caught:
            drive(engine, policies)
        messages.append(str(caught.value))
        assert engine.cache.blocks_in_use == 0
    assert messages[0] == messages[1]
    assert f"at position {at}" in messages[0]


def test_a_damaged_row_after_another_left() -> None:
    """The step in the air is taken row by row then."""

    class Damaged(LazyRunner):
        def logits(self, tokens: list[int]) -> Any:
            row = super().logits(tokens)
            return np.full_like(row, np.nan) if len(tokens) >= 12 else row

    policies = [policy_of(0, eos_token_id=[]), policy_of(0, eos_token_id=[])]
    with Engine(Damaged()) as engine:
        groups = [engine.add(policy) for policy in policies]
        while len(policies[0].live_tokens(0)) < 12:
            engine.step()
        engine.drop(groups[0])
        with pytest.raises(NumericError, match="NaN at position 12"):
            engine.step()
    assert len(policies[1].live_tokens(0)) == 12


@pytest.mark.parametrize("others", [0, 3])
def test_a_full_cache_ends_as_step_by_step(others: int) -> None:
    """The same tokens are there when memory lacks, though the step ahead of them has met it already."""
    lengths = []
    for runner in (LazyRunner(limit=2 + 2 * others), DoubleRunner(limit=2 + 2 * others)):
        policies = [policy_of(index, eos_token_id=[], max_new_tokens=400) for index in range(1 + others)]
        with Engine(runner) as engine, pytest.raises(OutOfMemoryError):
            drive(engine, policies)
        lengths.append([len(policy.live_tokens(0)) for policy in policies])
        assert engine.cache.blocks_in_use == 0
    assert lengths[0] == lengths[1]


def test_who_ends_in_time_makes_room() -> None:
    """Two sequences fill their blocks at one step: a step ahead finds no more of them, but with the token that was on
    its way one of them ends."""

    def make(prompt: list[int], end: list[int], count: int) -> Policy:
        chosen = GenerationOptions.build({}, {"max_new_tokens": count, "eos_token_id": end})
        return make_policy(prompt, chosen, vocab_size=23)

    def texts() -> Iterator[tuple[list[int], list[int]]]:
        for begin in range(23):
            policy = make([begin, 1, 2], [], 30)
            with Engine(DoubleRunner()) as engine:
                drive(engine, [policy])
            yield [begin, 1, 2], list(outcome(policy)[0][0])

    prompt, tokens = next((prompt, tokens) for prompt, tokens in texts() if tokens[-1] not in tokens[:-1])
    policies, runner = [make([0, 3, 4], [], 60), make(prompt, tokens[-1:], 60)], LazyRunner(limit=2)
    with Engine(runner) as engine:
        drive(engine, policies)
    assert outcome(policies[1]) == [(tokens, None, "stop")]
    other = make([0, 3, 4], [], 60)
    with Engine(DoubleRunner()) as engine:
        drive(engine, [other])
    assert outcome(policies[0]) == outcome(other)


@pytest.mark.parametrize("number", [1, 2, 5, 30])
def test_a_launch_that_fails(number: int) -> None:
    """Ahead it is put off until the tokens are known, and succeeds or fails then."""
    policy, other = policy_of(eos_token_id=[]), policy_of(eos_token_id=[])
    with Engine(DoubleRunner()) as engine:
        drive(engine, [other])
    runner = LazyRunner(refuse={number})
    with Engine(runner) as engine:
        if number == 1:  # the first one knows its tokens
            with pytest.raises(OutOfMemoryError):
                drive(engine, [policy])
        else:
            drive(engine, [policy])
            assert outcome(policy) == outcome(other)
    with Engine(LazyRunner(refuse={number, number + 1})) as engine, pytest.raises(OutOfMemoryError):
        drive(engine, [policy_of(eos_token_id=[])])


def test_no_step_leaves_the_context() -> None:
    runner = LazyRunner(max_positions=20)
    chosen = GenerationOptions.build({}, {"max_new_tokens": 17, "eos_token_id": []})
    policy = make_policy([1, 2, 3], chosen, vocab_size=23, max_positions=20)
    with Engine(runner) as engine:
        drive(engine, [policy])
    assert len(outcome(policy)[0][0]) == 17
    assert runner.followed > 10


def test_sources_are_read_ahead() -> None:
    """An encoder-decoder: sources of groups that end are released, and their blocks written, with a step in the air."""

    def run_all(runner: LazyRunner) -> list[Any]:
        cross = runner.new_cache()
        policies = [policy_of(i, max_new_tokens=10 + 7 * i, **CUTS[i % len(CUTS)]) for i in range(9)]
        with Engine(runner, cross=cross) as engine:
            for i, policy in enumerate(policies):
                source = Source(3 + i, [cross.allocate()])
                runner.work_off()  # an encoder's step is in order with the others
                cross.content[source.blocks[0]] = [*range(i, 3 + 2 * i), *[0] * 32][:32]
                engine.add(policy, source)
                for _ in range(8):
                    engine.step()
            while engine.busy:
                engine.step()
            assert engine.cache.blocks_in_use == cross.blocks_in_use == 0
        return [outcome(policy) for policy in policies]

    ahead, plain = LazyRunner(), LazyRunner(rows_ahead=0)
    assert run_all(ahead) == run_all(plain)
    assert ahead.followed > 20
    assert plain.launched == 0
