"""Speculation: the same texts as without, drawn ones with the same distribution, and no cache block lost on the way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import stories260k
import tested_device
from conftest import data_path, toy_folder
from engine_doubles import DoubleRunner
from numpy.typing import NDArray

import pyllm
from pyllm.decode.chain import FilterChain
from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Hypothesis, Policy, Request, make_policy
from pyllm.engine.engine import Engine
from pyllm.engine.speculation import Assistant, Lookup
from pyllm.errors import InvalidOptionError, OutOfMemoryError

LOOKUP: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
ASSISTED: dict[str, Any] = {"assistant_model": "known to the engine", "num_assistant_tokens": 4}
WAYS = [
    LOOKUP,
    {"prompt_lookup_num_tokens": 40, "max_matching_ngram_size": 1},  # more than a block of the cache
    ASSISTED | {"assistant_confidence_threshold": 0.0},
    ASSISTED | {"assistant_confidence_threshold": 0.25, "num_assistant_tokens_schedule": "heuristic"},
]


class Habitual(DoubleRunner):
    """A stand-in that often, but not always, says what it said after the same token before."""

    KNOWN: ClassVar[dict[tuple[int, ...], NDArray[np.float32]]] = {}

    def __init__(self, salt: int = 0, **rest: Any) -> None:
        super().__init__(**rest)
        self.salt = salt

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        key = (*tokens, self.salt)
        if key not in self.KNOWN:
            row = super().logits([*tokens, self.salt])
            row[(3 * tokens[-1] + 1) % 7] += 4
            self.KNOWN[key] = row
        return self.KNOWN[key].copy()


def policy_of(prompt: Sequence[int], **options: Any) -> Policy:
    return make_policy(prompt, GenerationOptions.build({}, options), vocab_size=23)


def drive(engine: Engine, policies: Sequence[Policy]) -> None:
    for policy in policies:
        engine.add(policy)
    while engine.busy:
        engine.step()


def run(policies: Sequence[Policy], **rest: Any) -> None:
    """All of them side by side on a runner and an assistant that differ, whose caches must be empty at the end."""
    runner, helper = Habitual(**rest), Habitual(salt=1)
    assistant = Assistant(helper, helper.new_cache(), 23)
    with Engine(runner, assistant=assistant, rows_per_step=64) as engine:
        drive(engine, policies)
        assert engine.cache.blocks_in_use == 0
        assert helper.caches[0].blocks_in_use == 0


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("token_ids", "score", "finish_reason"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("logits", "scores", "logprobs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def even(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    scores[:, 1::2] -= np.float32(0.5 * (ids.shape[1] % 3))
    return scores


def over(ids: NDArray[np.int64], scores: Any) -> NDArray[np.bool_]:
    return (ids[:, -1] == 4) & (ids.shape[1] > 40)


OPTIONS: list[dict[str, Any]] = [
    {"output_logits": True},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "output_scores": True},
    {"eos_token_id": [6, 11], "min_new_tokens": 9, "logprobs": 2},
    {"logits_processor": [even], "stopping_criteria": [over]},
    {"exponential_decay_length_penalty": (5, 1.1), "eos_token_id": 3, "forced_eos_token_id": 3},
]
DRAWN: dict[str, Any] = {"do_sample": True, "seed": 7, "num_return_sequences": 3, "temperature": 0.7}
PROMPTS = [
    [1],
    [4, 6, 5, 2] * 9,
    list(range(20)),
    [3, 3, 3, 3],
    *([random.Random(n).choices(range(23), k=n) for n in (31, 70)]),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_greedy_search_finds_the_same(way: dict[str, Any], options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 45} | options
    plain = [policy_of(prompt, **options) for prompt in PROMPTS]
    quick = [policy_of(prompt, **options, **way) for prompt in PROMPTS]
    run(plain)
    run([*quick, policy_of([5, 6], num_beams=3, max_new_tokens=25)])  # beams in the same steps
    for one, other in zip(quick, plain, strict=True):
        assert_same(one.results(), other.results())
    accepted, proposed = sum(one.accepted for one in quick), sum(one.proposed for one in quick)
    assert 0 < accepted < proposed  # both outcomes were seen
    assert sum(len(one.results()[0].token_ids) - 1 for one in quick) == accepted + sum(one.checked for one in quick)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_looked_up_tokens_leave_samples_as_they_are(way: dict[str, Any], options: dict[str, Any]) -> None:
    options = DRAWN | {"max_new_tokens": 45} | options
    plain = [policy_of(prompt, **options) for prompt in PROMPTS]
    quick = [policy_of(prompt, **options, **way) for prompt in PROMPTS]
    run(plain)
    run(quick)
    for one, other in zip(quick, plain, strict=True):
        assert_same(one.results(), other.results())
    assert 0 < sum(one.accepted for one in quick) < sum(one.proposed for one in quick)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_sequence_does_not_depend_on_its_company(way: dict[str, Any]) -> None:
    together = [policy_of(prompt, max_new_tokens=40, **DRAWN, **way) for prompt in PROMPTS]
    run(together)
    for prompt, policy in zip(PROMPTS, together, strict=True):
        alone = policy_of(prompt, max_new_tokens=40, **DRAWN, **way)
        run([alone])
        assert alone.results() == policy.results()


def test_out_of_memory_leaves_no_block() -> None:
    for limit in range(1, 16):
        runner, helper = Habitual(limit=limit), Habitual(salt=1, limit=1 + limit * 2 // 3)
        assistant = Assistant(helper, helper.new_cache(), 23)
        with pytest.raises(OutOfMemoryError), Engine(runner, assistant=assistant) as engine:
            drive(engine, [policy_of(PROMPTS[1], max_new_tokens=60, **DRAWN, **way) for way in WAYS])
        assert runner.caches[0].blocks_in_use == helper.caches[0].blocks_in_use == 0


# ---- distributions

SMALL = 5  # tokens; texts of three of them are counted


class Small(Habitual):
    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        return super().logits(tokens)[:SMALL] * np.float32(0.5)


def probabilities(runner: Small, options: GenerationOptions) -> dict[tuple[int, ...], float]:
    """Of every text of three tokens after [1]: products of the softmax of filtered scores, in float64."""
    chain = FilterChain(Request([1], options, SMALL, 4, seed=0))
    found: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(SMALL), repeat=3):
        found[text] = 1.0
        for at in range(3):
            before = [1, *text[:at]]
            scores = chain.apply(runner.logits(before)[None].copy(), [before])[0].astype(np.float64)
            found[text] *= np.exp(scores[text[at]]) / np.exp(scores).sum()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 3, "temperature": 1.4},
        {"top_k": 0, "top_p": 0.8, "num_assistant_tokens": 1},
        {"top_k": 0, "typical_p": 0.9, "num_assistant_tokens_schedule": "heuristic"},
        {"top_k": 0, "repetition_penalty": 1.7, "assistant_confidence_threshold": 0.3},
    ],
    ids=str,
)
def test_drawn_proposals_leave_the_distribution_as_it_is(options: dict[str, Any]) -> None:
    """6000 texts of three tokens, each from its own random numbers, against their exact probabilities."""
    draws = 6000
    settings = ASSISTED | {"assistant_confidence_threshold": 0.0, "num_assistant_tokens": 3} | options
    settings |= {"do_sample": True, "seed": 5, "num_return_sequences": draws, "max_new_tokens": 3}
    built = GenerationOptions.build({}, settings)
    runner, helper = Small(), Small(salt=3)
    assistant = Assistant(helper, helper.new_cache(), SMALL)
    policy = make_policy([1], built, vocab_size=SMALL)
    with Engine(runner, assistant=assistant) as engine:
        drive(engine, [policy])
    counts: dict[tuple[int, ...], int] = {}
    for hypothesis in policy.results():
        text = tuple(hypothesis.token_ids)
        counts[text] = counts.get(text, 0) + 1
    expected = {text: draws * p for text, p in probabilities(runner, built).items()}
    assert all(expected[text] > 0 for text in counts)
    likely = [text for text, count in expected.items() if count >= 8]
    rest = draws - sum(expected[text] for text in likely)
    chi = sum((counts.get(text, 0) - expected[text]) ** 2 / expected[text] for text in likely)
    chi += (draws - sum(counts.get(text, 0) for text in likely) - rest) ** 2 / max(rest, 1.0)
    assert chi < len(likely) + 5 * np.sqrt(2 * len(likely))
    assert 0.3 * policy.proposed < policy.accepted < 0.95 * policy.proposed


# ---- lookup


def followed(text: list[int], size: int) -> int | None:
    """Where the latest earlier occurrence of the last `size` tokens ends."""
    ends = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
    return ends[-1] if len(text) >= size and ends else None


def test_lookup_finds_the_latest_occurrence_of_the_longest_run() -> None:
    draw = random.Random(3)
    for _ in range(60):
        source = draw.choices(range(6), k=draw.choice([0, 9]))
        options = GenerationOptions.build({}, {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3})
        lookup = Lookup(make_policy([0], options, vocab_size=9, source_ids=source or None))
        tokens = [0]
        for _ in range(12):
            tokens += draw.choices(range(6), k=draw.randint(1, 4))
            lookup.propose(tokens, room=draw.choice([5, 2]) if (room := draw.choice([2, 5])) else 0)
            text = [*source, *tokens]
            lookup.propose(tokens, room)
            begin = next((at for size in (3, 2, 1) if (at := followed(text, size)) is not None), None)
            expected: list[int] = []
            if begin is not None:
                grown = list(text)
                for at in range(begin, begin + room):
                    grown.append(grown[at])
                expected = grown[len(text) :]
            assert lookup.proposal.tokens == expected


def test_lookup_proposes_no_end_and_no_token_of_the_encoder_alone() -> None:
    options = GenerationOptions.build({}, {"prompt_lookup_num_tokens": 5, "eos_token_id": 3})
    lookup = Lookup(make_policy([0, 1, 2, 3, 1], options, vocab_size=9))
    lookup.propose([0, 1, 2, 3, 1], 5)
    assert lookup.proposal.tokens == [2]
    lookup = Lookup(make_policy([1], options, vocab_size=9, source_ids=[1, 4, 12, 5]))
    lookup.propose([1], 5)
    assert lookup.proposal.tokens == [4]


# ---- models


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories260K")
    stories260k.convert(data_path("models/stories260K"), path)
    return path


@pytest.fixture(scope="module")
def model() -> Iterator[pyllm.LanguageModel]:
    with pyllm.load(pyllm.default_model()) as loaded:
        yield loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_story_is_the_same_to_the_bit(stories: Path, dtype: str) -> None:
    """Logits of checked rows are those of single steps."""
    other = "bfloat16" if dtype == "float32" else "float32"
    with pyllm.load(stories, dtype=dtype) as model, pyllm.load(stories, dtype=other) as assistant:
        options = {"max_new_tokens": 120, "do_sample": False, "output_logits": True}
        plain = model.generate([stories260k.BOS], **options)
        for way in (LOOKUP, {"assistant_model": assistant}, {"assistant_model": assistant, "num_assistant_tokens": 3}):
            found = model.generate([stories260k.BOS], **options, **way)
            assert found == plain
            if "num_assistant_tokens" in way or way == LOOKUP:  # up to 8 rows: the kernels of single steps
                np.testing.assert_array_equal(found.logits, plain.logits)
            tested_device.assert_same_numbers(found.logits, plain.logits, dtype)
            assert found.speculation is not None
            assert 0 < found.speculation.accepted <= found.speculation.proposed
            assert found.speculation.tokens_per_step > 1.05


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "top_p": 0.9}], ids=str)
def test_prompts_of_a_batch(model: pyllm.LanguageModel, options: dict[str, Any]) -> None:
    prompts = ["The prince", "It was the best of times, it was the worst of times, it was", "A"]
    common = {"do_sample": False, "max_new_tokens": 40, "repetition_penalty": 1.05} | options
    plain = model.generate(prompts, **common)
    assert model.generate(prompts, **common, **LOOKUP) == plain
    assisted = model.generate(prompts, **common, assistant_model=model)
    if not options:
        assert assisted == plain
    for prompt, result in zip(prompts, assisted, strict=True):
        assert model.generate(prompt, **common, assistant_model=model) == result
        assert result.speculation is not None
        assert result.speculation.accepted > 0
    assert plain[0].speculation is None


def test_an_assistant_of_the_same_weights_is_always_right(model: pyllm.LanguageModel) -> None:
    common: dict[str, Any] = {"max_new_tokens": 50, "assistant_model": model, "assistant_confidence_threshold": 0.0}
    for options in ({"do_sample": False}, {"do_sample": True, "seed": 1}, {"do_sample": True, "top_k": 0, "seed": 2}):
        counts = model.generate("The prince", **common, **options).speculation
        assert counts is not None
        assert counts.accepted == counts.proposed == 50 - 1 - counts.steps


def test_streams_and_stop_strings(model: pyllm.LanguageModel) -> None:
    prompt, common = "It was the best of times, it was the", {"do_sample": False, "max_new_tokens": 50}
    plain = model.generate(prompt, **common)
    for way in (LOOKUP, {"assistant_model": str(pyllm.default_model()), "num_assistant_tokens": 6}):
        stream = model.stream(prompt, **common, **way)
        assert "".join(stream) == plain.text
        assert stream.result == plain
    stop = plain.text[20:26]
    stopped = model.generate(prompt, stop_strings=[stop], **common)
    assert stopped.finish_reason == "stop_string"
    assert model.generate(prompt, stop_strings=[stop], prompt_lookup_num_tokens=9, **common) == stopped


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_encoder_decoders_look_up_their_source(name: str) -> None:
    with pyllm.load(toy_folder(name)) as model:
        common = {"num_beams": 1, "max_new_tokens": 14, "do_sample": False}
        sources = [[7, 8, 9, 10, 7, 8], [5, 6, 5, 6, 11]]
        sources += [model.generate(source, **common).token_ids + source for source in sources]
        plain = model.generate(sources, **common)
        found = model.generate(sources, **common, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
        assert found == plain
        assert sum(result.speculation.proposed for result in found) > 0
        with pytest.raises(InvalidOptionError, match="has an encoder"):
            model.generate(sources, **common, assistant_model=model)


def test_what_is_refused(model: pyllm.LanguageModel, stories: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(InvalidOptionError, match=match):
            model.generate("The", max_new_tokens=2, **options)

    refused("prompt_lookup_num_tokens needs num_beams=1", num_beams=2, do_sample=False, **LOOKUP)
    refused("assistant_model needs num_beams=1", num_beams=2, do_sample=False, assistant_model=model)
    refused("exclude each other", assistant_model=model, **LOOKUP)
    refused("excludes return_alternatives", return_alternatives=True, do_sample=False, **LOOKUP)
    refused("must be a loaded LanguageModel", assistant_model=3)
    refused(r"prompt_lookup_num_tokens must be an integer in \[1, 128\]", prompt_lookup_num_tokens=0)
    refused("num_assistant_tokens_schedule must be", assistant_model=model, num_assistant_tokens_schedule="x")
    with pyllm.load(stories) as other:
        refused("must have this model's vocabulary", assistant_model=other)
    with pyllm.load(toy_folder("gpt2")) as nameless:
        refused("must have this model's vocabulary", assistant_model=nameless)
    with pyllm.load(toy_folder("t5")) as writer:
        refused("must be a LanguageModel, got Seq2SeqModel", assistant_model=writer)
    refused("must be a decoder", assistant_model=str(toy_folder("t5")))
    with pytest.raises(InvalidOptionError, match=r"generation_config.json: assistant_model is for callers"):
        GenerationOptions.build({"assistant_model": "/a/folder"}, {})
    with pytest.warns(UserWarning, match="num_assistant_tokens without effect: set assistant_model"):
        GenerationOptions.build({}, {"num_assistant_tokens": 3})
