"""Logits that stay on a device: engines choose the same tokens from them as from rows of the host."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device
from engine_doubles import DoubleCache, DoubleRunner
from test_lanes import CASES, by_hand, drive, policies_of

from pyllm.decode.chain import FilterChain
from pyllm.decode.changes import make
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Policy, Request, make_policy
from pyllm.devices.cuda_rows import Chooser, CudaRows
from pyllm.engine.engine import Engine
from pyllm.engine.speculation import Assistant
from pyllm.errors import NumericError
from pyllm.program.batch import Batch


class Memory:
    """What a device's runner allocates by."""

    def __init__(self, on: Device) -> None:
        self._on = on

    def bytes(self, what: str, count: int) -> Any:
        return self._on.empty(count, np.uint8)

    def address(self, array: Any) -> int:
        return self._on.pointer(array)

    def current_stream(self) -> int:
        return 0 if self._on.emulated else int(self._on.xp.cuda.get_current_stream().ptr)


class OnDevice(DoubleRunner):
    """Logits end in device memory, in rows of a multiple of 64 columns; counts what of them comes back."""

    def __init__(self, on: Device, vocab_size: int = 23) -> None:
        super().__init__(vocab_size)
        self._on = on
        self._chooser = Chooser(on.module, on.xp, Memory(on))
        self.fetched = 0

    def run(self, batch: Batch, cache: DoubleCache) -> Any:
        rows = super().run(batch, cache)
        padded = np.full((len(rows), -(-rows.shape[1] // 64) * 64), np.nan, np.float32)
        padded[:, : rows.shape[1]] = rows
        return self._on.to_device(padded)[:, : rows.shape[1]]

    def device_rows(self, output: Any) -> CudaRows:
        runner = self

        class Watched(CudaRows):
            def __getitem__(self, rows: slice) -> CudaRows:
                return Watched(self._chooser, self._array[rows])

            def host(self) -> Any:
                runner.fetched += len(self)
                return super().host()

        return Watched(self._chooser, output)


def policy_of(options: dict[str, Any], vocab_size: int = 23, prompt: Any = (3, 4, 3)) -> Policy:
    chosen = GenerationOptions.build({}, {"max_new_tokens": 12, "eos_token_id": [5], **options})
    return make_policy(list(prompt), chosen, vocab_size=vocab_size, seed=7)


def outcome(policy: Policy) -> list[tuple[Any, ...]]:
    return [(one.token_ids, one.finish_reason) for one in policy.results()]


def test_engines_choose_on_the_device_what_policies_choose(device: Device) -> None:
    together, alone = policies_of(23, 5), policies_of(23, 5)
    with Engine(OnDevice(device)) as engine:
        drive(engine, together)
        assert engine.cache.blocks_in_use == 0
    plain = DoubleRunner()
    for policy, other in zip(together, alone, strict=True):
        by_hand(other, plain)
        assert outcome(policy) == outcome(other)
        for one, same in zip(policy.results(), other.results(), strict=True):
            assert one.score == (same.score if same.score is None else pytest.approx(same.score, rel=1e-5))


FORCED = {"forced_bos_token_id": 7, "forced_eos_token_id": [5, 6], "min_new_tokens": 4}
RULED_OUT: dict[str, Any] = {
    "suppress_tokens": [2, 11],
    "begin_suppress_tokens": [1, 20],
    "bad_words_ids": [[9], [3, 4], [5]],
    "sequence_bias": [[[8], 1.5], [[4, 3], -2.0], [[9], 3.0]],
}
PENALISED = {"repetition_penalty": 1.3, "encoder_repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
ON_DEVICE: list[dict[str, Any]] = [
    *CASES[:6],
    {"do_sample": True, "top_k": 0, "min_p": 0.2, "repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 3, "num_return_sequences": 3, "repetition_penalty": 0.8},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    *({**kind, **FORCED} for kind in ({}, {"do_sample": True}, {"num_beams": 4})),
    *({**kind, **RULED_OUT} for kind in ({}, {"do_sample": True, "num_return_sequences": 3}, {"num_beams": 3})),
    *({**kind, **PENALISED, "encoder_no_repeat_ngram_size": 3} for kind in ({}, {"do_sample": True}, {"num_beams": 3})),
    {**FORCED, **RULED_OUT, **PENALISED, "num_beams": 4, "suppress_tokens": [6]},
    {**FORCED, **RULED_OUT, "renormalize_logits": True},
    {**FORCED, **PENALISED, "renormalize_logits": True, "num_beams": 2},
    {**RULED_OUT, **PENALISED, "suppress_tokens": list(range(23))},
]
ON_HOST: list[tuple[dict[str, Any], str]] = [
    ({"prefix_allowed_tokens_fn": lambda batch, ids: [1, 2, 5]}, "prefix_allowed_tokens_fn"),
    ({"do_sample": True, "typical_p": 0.5, "output_scores": True}, "typical_p, output_scores"),
    ({"num_beams": 2, "do_sample": True, "suppress_tokens": [4]}, "do_sample with num_beams"),
    ({"logits_processor": [lambda ids, scores: scores]}, "logits_processor"),
    ({"prompt_lookup_num_tokens": 3, "logprobs": 2}, "logprobs"),
]


@pytest.mark.parametrize("prompt", [(3, 4, 3), (1,)], ids=["three", "one"])
@pytest.mark.parametrize("options", ON_DEVICE, ids=str)
def test_no_logits_come_to_the_host(device: Device, options: dict[str, Any], prompt: tuple[int, ...]) -> None:
    policy, other, runner = (*(policy_of(options, prompt=prompt) for _ in range(2)), OnDevice(device))
    with Engine(runner) as engine:
        drive(engine, [policy], late=0)
    by_hand(other, DoubleRunner())
    assert outcome(policy) == outcome(other)
    assert runner.fetched == 0


def test_searches_of_all_kinds_share_steps(device: Device) -> None:
    policies, others = ([policy_of(options) for options in ON_DEVICE] for _ in range(2))
    runner = OnDevice(device)
    with Engine(runner) as engine:
        drive(engine, policies)
    for policy, other in zip(policies, others, strict=True):
        by_hand(other, DoubleRunner())
        assert outcome(policy) == outcome(other)
    assert runner.fetched == 0


SPECULATED: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 0.7, "bad_words_ids": [[9], [3, 4]], "min_new_tokens": 9},
    {"do_sample": True, "top_k": 4, "temperature": 0.6},
    {"do_sample": True, "top_k": 0, "top_p": 0.7, "num_return_sequences": 3, "no_repeat_ngram_size": 4},
]


class Cyclic(OnDevice):
    """Says what it said three tokens before, mostly: so that proposals are right now and then."""

    def logits(self, tokens: list[int]) -> Any:
        row = super().logits(tokens)
        row[tokens[-3] if len(tokens) % 5 and len(tokens) > 2 else 0] += 4.0
        return row


@pytest.mark.parametrize("options", SPECULATED, ids=str)
def test_proposals_are_verified_on_the_device(device: Device, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 40, "eos_token_id": [], **options}
    policy, other = policy_of({"prompt_lookup_num_tokens": 3, **options}), policy_of(options)
    runner = Cyclic(device)
    with Engine(runner) as engine:
        drive(engine, [policy], late=0)
        assert engine.cache.blocks_in_use == 0
    by_hand(other, runner)
    assert outcome(policy) == outcome(other)
    assert 0 < policy.accepted < policy.proposed
    assert runner.fetched == 0


def surprising(row: Any, tokens: list[int]) -> Any:
    """What another model says, but now and then."""
    row[tokens[-3] % len(row)] += 6.0
    row[tokens[-1] % len(row)] += 8.0 * (len(tokens) % 4 == 0)
    return row


class Helper(OnDevice):
    def logits(self, tokens: list[int]) -> Any:
        return surprising(super().logits(tokens), tokens)


class HelperOnHost(DoubleRunner):
    def logits(self, tokens: list[int]) -> Any:
        return surprising(super().logits(tokens), tokens)


@pytest.mark.parametrize("width", [23, 22, 70])
@pytest.mark.parametrize("options", SPECULATED[:2], ids=str)
def test_assistants_choose_on_the_device(device: Device, options: dict[str, Any], width: int) -> None:
    """Also one whose logits are fewer or more than the model's; it proposes what it does with logits on the host."""
    options = {"max_new_tokens": 40, "eos_token_id": [], **options}
    assisted = {"assistant_model": "known to the engine", "assistant_confidence_threshold": 0.3, **options}
    there, here, other = policy_of(assisted), policy_of(assisted), policy_of(options)
    runner, helper = Cyclic(device), Helper(device, width)
    with Engine(runner, assistant=Assistant(helper, helper.new_cache(), 23)) as engine:
        drive(engine, [there], late=0)
        assert helper.caches[0].blocks_in_use == 0
    assert runner.fetched == helper.fetched == 0
    plain = HelperOnHost(width)
    with Engine(runner, assistant=Assistant(plain, plain.new_cache(), 23)) as engine:
        drive(engine, [here], late=0)
    by_hand(other, runner)
    assert outcome(there) == outcome(here) == outcome(other)
    assert (there.proposed, there.accepted) == (here.proposed, here.accepted)
    assert 0 < there.accepted < there.proposed


@pytest.mark.parametrize("options", SPECULATED, ids=str)
def test_damaged_rows_after_proposals_are_reported_when_they_are_read(device: Device, options: dict[str, Any]) -> None:
    class Damaged(Cyclic):
        def logits(self, tokens: list[int]) -> Any:
            row = super().logits(tokens)
            return np.full_like(row, np.nan) if len(tokens) == 23 else row

    options = {"max_new_tokens": 40, "eos_token_id": [], **options}
    with Engine(Damaged(device)) as engine, pytest.raises(NumericError, match="NaN at position 23"):
        drive(engine, [policy_of({"prompt_lookup_num_tokens": 3, **options})], late=0)


@pytest.mark.parametrize(("options", "why"), ON_HOST, ids=str)
def test_what_reads_logits_gets_them(
    device: Device,
    options: dict[str, Any],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy, other, runner = policy_of(options), policy_of(options), OnDevice(device)
    beside = policy_of({})
    with caplog.at_level(logging.DEBUG, "pyllm"), Engine(runner) as engine:
        drive(engine, [policy, beside], late=0)
    plain = {name: value for name, value in options.items() if name != "prompt_lookup_num_tokens"}
    other = policy_of(plain)
    by_hand(other, DoubleRunner())
    assert outcome(policy) == outcome(other)
    assert runner.fetched > 0
    assert [record.getMessage() for record in caplog.records if record.name == "pyllm"] == [
        f"logits come from the device to the host: {why}"
    ]


def test_small_vocabularies_fill_beams(device: Device) -> None:
    """The prompt's row alone has too few continuations for all beams."""
    policy, other = (
        policy_of({"num_beams": 4, "eos_token_id": [2]}, 3, [1]),
        policy_of({"num_beams": 4, "eos_token_id": [2]}, 3, [1]),
    )
    with Engine(OnDevice(device, 3)) as engine:
        drive(engine, [policy], late=0)
    by_hand(other, DoubleRunner(3))
    assert outcome(policy) == outcome(other)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("at", [3, 9])
def test_damaged_logits_are_reported(device: Device, options: dict[str, Any], at: int) -> None:
    class Damaged(OnDevice):
        def logits(self, tokens: list[int]) -> Any:
            row = super().logits(tokens)
            return np.full_like(row, np.nan) if len(tokens) == at else row

    with Engine(Damaged(device)) as engine, pytest.raises(NumericError, match=f"NaN at position {at}"):
        drive(engine, [policy_of({"eos_token_id": [], **options})], late=0)


@pytest.mark.parametrize("beams", [1, 2])
def test_forced_tokens_hide_damage_as_on_the_host(device: Device, beams: int) -> None:
    """Greedy search never looks at what a forced token overwrites, beams do."""

    def damaged(row: Any, tokens: list[int]) -> Any:
        return np.full_like(row, np.nan) if len(tokens) == 14 else row

    class OnDeviceDamaged(OnDevice):
        def logits(self, tokens: list[int]) -> Any:
            return damaged(super().logits(tokens), tokens)

    class OnHostDamaged(DoubleRunner):
        def logits(self, tokens: list[int]) -> Any:
            return damaged(super().logits(tokens), tokens)

    options = {"eos_token_id": [], "forced_eos_token_id": 6, "num_beams": beams}
    policies = policy_of(options), policy_of(options)
    sees: AbstractContextManager[Any]
    sees = pytest.raises(NumericError, match="NaN at position 14") if beams > 1 else nullcontext()
    with Engine(OnDeviceDamaged(device)) as engine, sees:
        drive(engine, [policies[0]], late=0)
    with sees:
        by_hand(policies[1], OnHostDamaged())
    if beams == 1:
        assert outcome(policies[0]) == outcome(policies[1])


HISTORIES = [[1], [1, 4, 3, 9], [1, 2, 3, 4, 3, 9, 2, 3], [1, *range(12)] * 3]


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize("options", [FORCED, RULED_OUT, PENALISED, {**FORCED, **RULED_OUT, **PENALISED}], ids=str)
def test_changes_are_what_filters_do(device: Device, options: dict[str, Any], renormalised: bool) -> None:
    """To the bit; log-probabilities, whose sums are rounded elsewhere, nearly."""
    built = GenerationOptions.build({}, {"eos_token_id": [5], "renormalize_logits": renormalised, **options})
    chain = FilterChain(Request([1], built, 23, 9, seed=0, source_ids=[4, 3, 9, 30]))
    rows = np.random.RandomState(3).standard_normal((len(HISTORIES), 64)).astype(np.float32)[:, :23]
    expected = [chain.apply(row[None].copy(), [history]) for row, history in zip(rows, HISTORIES, strict=True)]
    padded = np.full((len(rows), 64), np.nan, np.float32)
    padded[:, :23] = rows
    held = Chooser(device.module, device.xp, Memory(device)).rows(device.to_device(padded)[:, :23])
    make(held, [(i, chain.changes(history)) for i, history in enumerate(HISTORIES)])
    tolerance = 2e-6 if renormalised else 0
    np.testing.assert_allclose(held.host(), np.concatenate(expected), rtol=tolerance, atol=tolerance)


def test_scoring_reads_the_rows(device: Device) -> None:
    with Engine(OnDevice(device)) as engine, Engine(DoubleRunner()) as other:
        assert (engine.score([1, 2, 3]) == other.score([1, 2, 3])).all()


def test_rows_that_kernels_cannot_read_come_to_the_host(device: Device) -> None:
    chooser = Chooser(device.module, device.xp, Memory(device))
    dense = chooser.rows(device.to_device(np.zeros((2, 23), np.float32)))
    assert not dense.can_choose
    assert not dense.can_rank(2)
    wide = chooser.rows(device.to_device(np.zeros((2, 64), np.float32))[:, :23])
    assert wide.can_choose
    assert wide.can_rank(2)
    assert not wide.can_rank(device.module.MOST_BEST + 1)
    assert wide.shape == (2, 23)
    assert wide.host().shape == (2, 23)
