"""The policies on scripted logits: beams by enumeration and against transformers, sampling statistics, stopping."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted import Script, as_transformers_model, drive

from pyllm.decode import _search
from pyllm.decode.chain import FilterChain
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Hypothesis, Request, make_policy
from pyllm.errors import InvalidOptionError, NumericError, PromptError


def run(script: Script, prompt: Sequence[int], **options: Any) -> list[Hypothesis]:
    policy = script.policy(prompt, **options)
    drive(script, policy)
    return policy.results()


def log_probability(script: Script, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    total, before = 0.0, list(prompt)
    for token in tokens:
        logits = script.after(before).astype(np.float64)
        total += logits[token] - np.log(np.sum(np.exp(logits)))
        before.append(token)
    return total


def everything(script: Script, prompt: Sequence[int], length: int, end: int, penalty: float) -> list[Any]:
    """(score, tokens) of all texts that end with `end` or have `length` tokens, best first."""
    texts = [
        (log_probability(script, prompt, tokens) / count**penalty, list(tokens))
        for count in range(1, length + 1)
        for tokens in itertools.product(range(script.vocab_size), repeat=count)
        if end not in tokens[:-1] and (tokens[-1] == end or count == length)
    ]
    return sorted(texts, reverse=True)


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_what_enumeration_finds(seed: int, penalty: float) -> None:
    script, end = Script(5, seed), 4
    options = {"num_beams": 64, "num_return_sequences": 12, "max_new_tokens": 4, "eos_token_id": end}
    found = run(script, [1, 2], length_penalty=penalty, early_stopping="never", **options)
    best = everything(script, [1, 2], 4, end, penalty)[:12]
    assert [hypothesis.token_ids for hypothesis in found] == [tokens for _, tokens in best]
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], [score for score, _ in best], atol=1e-5)
    for hypothesis in found:
        assert hypothesis.finish_reason == ("stop" if hypothesis.token_ids[-1] == end else "length")


def random_options(draw: random.Random, vocab_size: int) -> dict[str, Any]:
    beams = draw.choice([1, 2, 3, 4, 6])
    ends = draw.sample(range(vocab_size), draw.choice([0, 1, 1, 3]))
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": draw.choice([1, 2, 5, 12])}
    if beams > 1:
        options["early_stopping"] = draw.choice([True, False, "never"])
        options["length_penalty"] = draw.choice([-1.0, 0.0, 0.5, 1.0, 2.0])
        options["num_return_sequences"] = draw.randint(1, beams)
    if ends:
        options["eos_token_id"] = ends
        options |= draw.choice([{}, {}, {"min_new_tokens": min(3, options["max_new_tokens"])}])
    for extra in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"renormalize_logits": True}):
        if draw.random() < 0.25:
            options |= extra
    return options


@pytest.mark.parametrize("seed", range(12))
def test_searches_against_transformers(seed: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    draw, script = random.Random(seed), Script(40, seed)
    model = as_transformers_model(script)
    model.generation_config = transformers.GenerationConfig()
    for _ in range(6):
        options, prompt = random_options(draw, 40), [draw.randrange(40) for _ in range(draw.choice([1, 3, 9]))]
        keep = {"return_dict_in_generate": True, "output_scores": True, "use_cache": False, "pad_token_id": 40}
        config = transformers.GenerationConfig(**options, **keep)
        output = model.generate(torch.tensor([prompt]), generation_config=config)
        found = run(script, prompt, output_scores=options["num_beams"] % 2 == 0, **options)
        texts = [[token for token in row[len(prompt) :] if token != 40] for row in output.sequences.tolist()]
        assert [hypothesis.token_ids for hypothesis in found] == texts, options
        if options["num_beams"] > 1:
            scores = [hypothesis.score for hypothesis in found]
            np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=1e-6, atol=1e-4)


def test_beams_of_one_prompt_token_left_to_choose() -> None:
    """Fewer continuations than beams: no crash, the possible texts first, each with its own score."""
    script = Script(6, 0)
    only = run(script, [1], num_beams=4, max_new_tokens=3, prefix_allowed_tokens_fn=lambda _, ids: [2, 3])
    best = sorted((log_probability(script, [1], t), list(t)) for t in itertools.product([2, 3], repeat=3))
    assert only[0].token_ids == best[-1][1]


@pytest.mark.parametrize(("beams", "groups"), [(2, 2), (4, 2), (6, 3), (6, 2), (8, 4)])
def test_groups(beams: int, groups: int) -> None:
    script = Script(60, beams * groups)
    options = {"num_beams": beams, "num_beam_groups": groups, "num_return_sequences": beams, "max_new_tokens": 6}
    found = run(script, [3, 4], diversity_penalty=50.0, eos_token_id=5, **options)
    scores = [hypothesis.score for hypothesis in found]
    assert len(found) == beams
    assert scores == sorted(scores, reverse=True)
    # Such a penalty forbids: within a step, no token is chosen in two groups, so all groups begin differently.
    first = [hypothesis.token_ids[0] for hypothesis in found if hypothesis.score > -20]
    assert len(set(first)) >= groups
    # The first group knows of no other: it searches as beams of its size do.
    size = beams // groups
    alone = run(script, [3, 4], num_beams=size, max_new_tokens=6, num_return_sequences=size)
    together = run(script, [3, 4], diversity_penalty=1e-6, **options)
    for hypothesis in alone:
        tokens = [other.token_ids for other in together]
        assert hypothesis.token_ids in tokens
        if size > 1:
            assert together[tokens.index(hypothesis.token_ids)].score == pytest.approx(hypothesis.score, abs=1e-4)


@pytest.mark.parametrize(("batch", "beams", "sample"), [(3, 1, False), (3, 4, False), (4, 1, True), (3, 3, True)])
def test_alone_and_side_by_side(batch: int, beams: int, sample: bool) -> None:
    """Prompts of a batch, each with its own policy, end as they do alone; and so do equal ones."""
    script = Script(50, 9)
    prompts = [[index + 2, 7, 1 + index][: 1 + index] for index in range(batch)] + [[3]]
    options = {"num_beams": beams, "do_sample": sample, "seed": 5, "eos_token_id": [4, 9], "max_new_tokens": 12}
    if beams > 1 or sample:
        options["num_return_sequences"] = min(beams, 3) if beams > 1 else 3
    together = [script.policy(prompt, **options) for prompt in prompts]
    drive(script, *together)
    for prompt, policy in zip(prompts, together, strict=True):
        alone = script.policy(prompt, **options)
        drive(script, alone)
        assert alone.results() == policy.results()


def test_greedy_is_the_only_beam_and_the_coldest_sample() -> None:
    script = Script(50, 2)
    greedy = run(script, [1], max_new_tokens=15, eos_token_id=7)[0]
    cold = run(script, [1], max_new_tokens=15, eos_token_id=7, do_sample=True, temperature=1e-4, seed=0)[0]
    best = run(script, [1], max_new_tokens=15, eos_token_id=7, do_sample=True, top_k=1, seed=0)[0]
    assert greedy.token_ids == cold.token_ids == best.token_ids
    beams = run(script, [1], max_new_tokens=10, num_beams=3, eos_token_id=7)[0]
    drawn = run(script, [1], max_new_tokens=10, num_beams=3, eos_token_id=7, do_sample=True, temperature=1e-3, top_k=0)
    assert drawn[0].token_ids == beams.token_ids


SAMPLING: list[dict[str, Any]] = [
    {"top_k": 0},
    {"temperature": 0.6},
    {"top_k": 5, "temperature": 2.0},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": 0, "min_p": 0.1, "temperature": 1.5},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 0, "typical_p": 0.7},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
@pytest.mark.parametrize("vocab_size", [60, 3000])
def test_distribution_of_samples(options: dict[str, Any], vocab_size: int) -> None:
    """20000 draws from one row: chi-square against the softmax of the filtered scores, in float64."""
    logits = (2 * np.random.RandomState(4).standard_normal((1, vocab_size))).astype(np.float32)
    draws = 20_000
    built = GenerationOptions.build({}, {"do_sample": True, "seed": 1, "num_return_sequences": draws} | options)
    scores = FilterChain(Request([1], built, vocab_size, 2, seed=0)).apply(logits.copy(), [[1]])[0]
    expected = np.exp(scores.astype(np.float64) - scores.max())
    expected *= draws / expected.sum()
    fused = built.typical_p == 1
    row, cuts = scores[None], (1.0, 0, 1.0, 0.0)
    if fused:
        row, cuts = logits, (built.temperature, built.top_k, built.top_p, built.min_p or 0.0)
    counts = np.zeros(vocab_size)
    for index in range(draws):
        counts[_search.sample(row, *cuts, [_search.uniform(1, 0, index, 0)])[0]] += 1
    assert not counts[expected == 0].any()
    order = np.argsort(-expected)
    order = order[expected[order] > 0]
    large = order[expected[order] >= 10]
    rest = np.setdiff1d(order, large)
    observed = np.append(counts[large], counts[rest].sum())
    wanted = np.append(expected[large], expected[rest].sum())
    chi = np.sum((observed - wanted) ** 2 / np.maximum(wanted, 1e-9) * (wanted > 0))
    degrees = len(large)
    assert chi < degrees + 4 * np.sqrt(2 * max(degrees, 1)) + 8


@pytest.mark.parametrize("options", SAMPLING[:6], ids=str)
def test_keeping_scores_does_not_change_the_sample(options: dict[str, Any]) -> None:
    script = Script(60, 5, spread=1.0)
    for seed in range(5):
        common = {"do_sample": True, "max_new_tokens": 8, "seed": seed, "num_return_sequences": 3} | options
        plain, kept = run(script, [1], **common), run(script, [1], output_scores=True, **common)
        assert [h.token_ids for h in plain] == [h.token_ids for h in kept]
        for hypothesis in kept:
            assert hypothesis.scores is not None
            chosen = hypothesis.scores[np.arange(8), hypothesis.token_ids]
            sums = np.log(np.sum(np.exp(hypothesis.scores.astype(np.float64)), axis=1))
            assert hypothesis.score == pytest.approx(float(np.sum(chosen - sums)), abs=1e-4)


def test_seeds() -> None:
    script = Script(60, 6, spread=0.5)
    options = {"do_sample": True, "max_new_tokens": 12}
    three = run(script, [1], seed=3, num_return_sequences=3, **options)
    assert run(script, [1], seed=3, **options)[0].token_ids == three[0].token_ids
    assert len({tuple(h.token_ids) for h in three}) == 3
    assert run(script, [1], seed=4, **options)[0].token_ids != three[0].token_ids
    policy = script.policy([1], **options)
    drive(script, policy)
    assert run(script, [1], seed=policy.seed, **options) == policy.results()
    built = GenerationOptions.build({}, {"seed": 3, **options})
    other = make_policy([1], built, vocab_size=60, seed_index=1)
    drive(script, other)
    assert other.results()[0].token_ids != three[0].token_ids


def test_draws_without_replacement() -> None:
    """First two of three weights 1 : 2 : 5, drawn one after the other: all six orders as often as they should."""
    row = np.log(np.array([1, 2, 5], np.float32))
    counts: dict[tuple[int, ...], int] = {}
    for index in range(12_000):
        uniforms = [_search.uniform(2, 0, index, step) for step in range(2)]
        drawn = _search.draw_without_replacement(row, uniforms)
        assert drawn is not None
        counts[tuple(drawn)] = counts.get(tuple(drawn), 0) + 1
    for (a, b), count in counts.items():
        weights = [1, 2, 5]
        assert count / 12_000 == pytest.approx(weights[a] / 8 * weights[b] / (8 - weights[a]), abs=0.015)
    assert len(counts) == 6
    large = (3 * np.random.RandomState(0).standard_normal(5000)).astype(np.float32)
    uniforms = [_search.uniform(2, 0, 0, step) for step in range(40)]
    assert len(set(_search.draw_without_replacement(large, uniforms) or [])) == 40
    few = np.full(5000, -np.inf, np.float32)
    few[[17, 4000]] = 0.0
    assert set((_search.draw_without_replacement(few, uniforms) or [])[:2]) == {17, 4000}


WORDS = ["s", "t", "o", "p", "st", "op", "stop", "opera", "pper", "sto", "las", "topper", "pped", "to", "at", "!", "é"]


def forced(tokens: list[int]) -> Script:
    """A script that says these tokens after [15, 15]."""
    script = Script(len(WORDS), 0)
    script.after = lambda history: np.eye(len(WORDS), dtype=np.float32)[tokens[len(history) - 2]]  # type: ignore[method-assign]
    return script


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        (["st", "op", "!"], 2),
        (["stop", "!"], 1),
        (["st", "opera", "!"], 2),
        (["sto", "pper", "!"], 2),
        (["las", "topper", "!"], 2),
        (["s", "to", "pped", "!"], 3),
        (["s", "to", "at", "!"], 4),
        (["é", "é", "stop", "!"], 3),
    ],
)
def test_stop_strings(pieces: list[str], length: int) -> None:
    """transformers' own examples: a stop string may begin in one token and end inside another."""
    script = forced([WORDS.index(piece) for piece in pieces])
    options = GenerationOptions.build({}, {"stop_strings": ["xyz", "stop"], "max_new_tokens": len(pieces)})
    policy = make_policy(
        [15, 15], options, vocab_size=len(WORDS), decode=lambda ids: "".join(WORDS[token] for token in ids)
    )
    drive(script, policy)
    result = policy.results()[0]
    assert [WORDS[token] for token in result.token_ids] == pieces[:length]
    reason = ("stop_string", "stop") if length < len(pieces) else ("length", None)
    assert (result.finish_reason, result.stop_string) == reason


def test_stop_string_in_the_prompt_does_not_count_but_may_begin_there() -> None:
    def text(ids: list[int]) -> str:
        return "".join(WORDS[token] for token in ids)

    for prompt, tokens, length in (("stop !", ["at", "!"], 2), ("! st", ["op", "!"], 1)):
        ids = [WORDS.index(piece) for piece in prompt.split()]
        options = GenerationOptions.build({}, {"stop_strings": "stop", "max_new_tokens": 2, "num_beams": 1})
        policy = make_policy(ids, options, vocab_size=len(WORDS), decode=text)
        drive(forced([WORDS.index(piece) for piece in tokens]), policy)
        assert len(policy.results()[0].token_ids) == length
    with pytest.raises(InvalidOptionError, match="tokenizer"):
        make_policy([1], options, vocab_size=len(WORDS))


POLICIES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 2, "seed": 1},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 3, "do_sample": True, "seed": 1, "num_return_sequences": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
    {"return_alternatives": True, "num_return_sequences": 2},
    {"return_alternatives": True, "num_return_sequences": 2, "num_beams": 3},
]


@pytest.mark.parametrize("options", POLICIES, ids=str)
class TestEveryPolicy:
    """What holds whatever the search."""

    def test_callables(self, options: dict[str, Any]) -> None:
        """Odd tokens by a processor, those of a list by the prefix function, the end by a criterion."""
        script = Script(30, 1)

        def odd(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
            assert scores.shape == (len(ids), 30)
            return np.where(np.arange(30) % 2, scores, -np.inf)

        def after_six(ids: NDArray[np.int64], scores: Any) -> NDArray[np.bool_]:
            return np.full(len(ids), ids.shape[1] >= 2 + 6)

        found = run(
            script,
            [1, 2],
            logits_processor=[odd],
            stopping_criteria=[after_six],
            prefix_allowed_tokens_fn=lambda batch, ids: list(range(2, 20)),
            max_new_tokens=20,
            **options,
        )
        assert len(found) == options.get("num_return_sequences", 1)
        for hypothesis in found:
            assert hypothesis.finish_reason == "criteria"
            assert len(hypothesis.token_ids) == 6
            assert all(token % 2 and 2 <= token < 20 for token in hypothesis.token_ids)

    def test_rows_follow_the_sequence(self, options: dict[str, Any]) -> None:
        script = Script(30, 2)
        found = run(script, [1, 2], max_new_tokens=7, output_logits=True, output_scores=True, eos_token_id=3, **options)
        for hypothesis in found:
            assert hypothesis.logits is not None
            assert hypothesis.scores is not None
            texts = [[1, 2, *hypothesis.token_ids[:count]] for count in range(len(hypothesis.token_ids))]
            np.testing.assert_array_equal(hypothesis.logits, np.stack([script.after(text) for text in texts]))
            assert hypothesis.scores.shape == hypothesis.logits.shape
            assert np.isfinite(hypothesis.scores[np.arange(len(texts)), hypothesis.token_ids]).all()

    def test_stop_from_outside(self, options: dict[str, Any]) -> None:
        script = Script(30, 3)
        for steps in (0, 1, 3):
            policy = script.policy([1, 2], max_new_tokens=9, **options)
            live = [[1, 2]]
            for _ in range(steps):
                step = policy.advance(np.stack([script.after(tokens) for tokens in live]))
                live = [[*live[p], t] for p, t in zip(step.parents, step.tokens, strict=True)]
            policy.stop("interrupted")
            assert policy.finished
            assert policy.num_live == 0
            found = policy.results()
            assert len(found) == options.get("num_return_sequences", 1)
            assert {h.finish_reason for h in found} == {"interrupted"}
            assert {len(h.token_ids) for h in found} == {steps}

    def test_time(self, options: dict[str, Any]) -> None:
        found = run(Script(30, 3), [1], max_new_tokens=1000, max_time=1e-9, **options)
        assert {(h.finish_reason, len(h.token_ids)) for h in found} == {("time", 1)}

    def test_nan(self, options: dict[str, Any]) -> None:
        script = Script(30, 4)
        script.table[:, :, 7] = np.nan
        with pytest.raises(NumericError, match="NaN at position 2"):
            run(script, [1, 2], max_new_tokens=3, **options)
        found = run(script, [1, 2], max_new_tokens=3, remove_invalid_values=True, **options)
        assert len(found[0].token_ids) == 3

    def test_misuse(self, options: dict[str, Any]) -> None:
        script = Script(30, 5)
        policy = script.policy([1], max_new_tokens=1, **options)
        for wrong in (np.zeros((2, 30), np.float32), np.zeros((1, 31), np.float32), np.zeros((1, 30))):
            with pytest.raises(ValueError, match="float32"):
                policy.advance(wrong)
        drive(script, policy)
        with pytest.raises(RuntimeError, match="finished"):
            policy.advance(np.zeros((1, 30), np.float32))


def test_prompts_that_cannot_run() -> None:
    options = GenerationOptions.build({}, {})
    with pytest.raises(PromptError, match="at least one token"):
        make_policy([], options, vocab_size=9)
    with pytest.raises(PromptError, match=r"\[0, 9\), got \[-1, 9\]"):
        make_policy([9, 3, -1], options, vocab_size=9)


def test_streamed_tokens_are_the_result() -> None:
    script = Script(40, 8)
    options = {"do_sample": True, "seed": 2, "num_return_sequences": 3, "eos_token_id": 5, "max_new_tokens": 9}
    policy = script.policy([1], **options)
    seen: list[list[int]] = [[], [], []]
    live = [[1]]
    while not policy.finished:
        step = policy.advance(np.stack([script.after(tokens) for tokens in live]))
        live = [[*live[p], t] for p, t in zip(step.parents, step.tokens, strict=True)]
        for index in range(3):
            now = policy.sequence_tokens(index)
            assert now[: len(seen[index])] == seen[index]
            seen[index] = list(now)
    assert seen == [h.token_ids for h in policy.results()]
    with pytest.raises(ValueError, match="num_beams=1"):
        script.policy([1], num_beams=2).sequence_tokens(0)
