"""Log-probabilities, attention, coverage and alternatives on scripted logits, by brute force; encoder-decoder prompts
against transformers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted import Script, as_transformers_model, drive

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Hypothesis, Policy, make_policy
from pyllm.errors import InvalidOptionError

SOURCE = 3  # positions of the scripted attention


class Attentive(Script):
    """A script that also attends: to each source position by the last two tokens."""

    def __init__(self, vocab_size: int, seed: int, spread: float = 2.0) -> None:
        super().__init__(vocab_size, seed, spread)
        weights = np.random.RandomState(seed + 100).exponential(size=(vocab_size, vocab_size, SOURCE)) ** 2
        self.weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)

    def attention(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.weights[tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]


def drive_with_attention(script: Attentive, policy: Policy) -> None:
    while not policy.finished:
        live = [policy.live_tokens(i) for i in range(policy.num_live)]
        policy.note_attention(np.stack([script.attention(tokens) for tokens in live]))
        policy.advance(np.stack([script.after(tokens) for tokens in live]))


def run(script: Script, prompt: Sequence[int], **options: Any) -> list[Hypothesis]:
    if isinstance(script, Attentive):
        built = GenerationOptions.build({}, options)
        policy = make_policy(prompt, built, vocab_size=script.vocab_size, source_ids=[0] * SOURCE)
        drive_with_attention(script, policy)
    else:
        policy = script.policy(prompt, **options)
        drive(script, policy)
    return policy.results()


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = row.astype(np.float64)
    return wide - np.log(np.sum(np.exp(wide - wide.max()))) - wide.max()


POLICIES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 3, "seed": 1},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 3, "do_sample": True, "seed": 1},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4},
    {"return_alternatives": True, "num_return_sequences": 3},
    {"return_alternatives": True, "num_return_sequences": 3, "num_beams": 2},
]


@pytest.mark.parametrize("options", POLICIES, ids=str)
def test_logprobs_are_those_of_the_network(options: dict[str, Any]) -> None:
    """Whatever the filters do; ties to the lowest id."""
    script = Script(30, 2)
    script.table = np.round(script.table)
    common = {"max_new_tokens": 7, "eos_token_id": 3, "repetition_penalty": 1.5, "suppress_tokens": [4]}
    plain = run(script, [1, 2], **common, **options)
    for k in (0, 4):
        found = run(script, [1, 2], logprobs=k, **common, **options)
        assert [h.token_ids for h in found] == [h.token_ids for h in plain]
        for hypothesis in found:
            tokens = hypothesis.token_ids
            exact = np.stack([log_softmax(script.after([1, 2, *tokens[:t]])) for t in range(len(tokens))])
            assert hypothesis.logprobs is not None
            assert hypothesis.logprobs.dtype == np.float32
            np.testing.assert_allclose(hypothesis.logprobs, exact[np.arange(len(tokens)), tokens], atol=2e-6)
            if k == 0:
                assert hypothesis.top_logprobs is None
                continue
            assert hypothesis.top_logprobs is not None
            ids, values = hypothesis.top_logprobs
            assert ids.tolist() == [np.lexsort((np.arange(30), -row))[:k].tolist() for row in np.round(exact, 6)]
            np.testing.assert_allclose(values, np.take_along_axis(exact, ids, axis=1), atol=2e-6)
            assert (ids.dtype, values.dtype) == (np.int32, np.float32)
    assert plain[0].logprobs is None


def test_logprobs_against_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    script = Script(40, 3)
    model = as_transformers_model(script)
    for beams in (1, 3):
        config = transformers.GenerationConfig(
            max_new_tokens=8, num_beams=beams, output_scores=True, return_dict_in_generate=True, use_cache=False
        )
        output = model.generate(torch.tensor([[5, 6]]), generation_config=config)
        theirs = model.compute_transition_scores(
            output.sequences, output.scores, output.get("beam_indices"), normalize_logits=True
        )
        ours = run(script, [5, 6], max_new_tokens=8, num_beams=beams, logprobs=0)[0]
        assert ours.token_ids == output.sequences[0, 2:].tolist()
        np.testing.assert_allclose(ours.logprobs, theirs[0].numpy(), atol=1e-5)


def test_logprobs_of_rows_with_nan() -> None:
    script = Script(6, 4)
    script.table[:, :, 2:] = np.nan
    found = run(script, [1], max_new_tokens=2, remove_invalid_values=True, logprobs=4)[0]
    assert found.top_logprobs is not None
    assert found.top_logprobs[0][:, 2:].tolist() == [[-1, -1], [-1, -1]]
    assert np.isnan(found.logprobs).all()
    assert np.isnan(found.top_logprobs[1]).all()


@pytest.mark.parametrize("options", POLICIES, ids=str)
def test_attention_follows_the_sequence(options: dict[str, Any]) -> None:
    script = Attentive(30, 2)
    common = {"max_new_tokens": 7, "eos_token_id": 3}
    found = run(script, [1, 2], output_cross_attentions=True, **common, **options)
    assert [h.token_ids for h in found] == [h.token_ids for h in run(script, [1, 2], **common, **options)]
    for hypothesis in found:
        texts = [[1, 2, *hypothesis.token_ids[:count]] for count in range(len(hypothesis.token_ids))]
        np.testing.assert_array_equal(hypothesis.attention, [script.attention(text) for text in texts])


def test_attention_that_is_missing_or_of_another_shape() -> None:
    for wish in ({"output_cross_attentions": True}, {"coverage_penalty": 0.2, "num_beams": 2}):
        with pytest.raises(InvalidOptionError, match="a model without an encoder"):
            Script(9, 0).policy([1], **wish)
        policy = make_policy([1], GenerationOptions.build({}, wish), vocab_size=9, source_ids=[0] * SOURCE)
        assert policy.needs_attention
        with pytest.raises(ValueError, match=r"float32 \[1, S\], got shape \(2, 3\)"):
            policy.note_attention(np.zeros((2, 3), np.float32))
        with pytest.raises(ValueError, match="call note_attention first"):
            policy.advance(np.zeros((1, 9), np.float32))
    policy = Script(9, 0).policy([1])
    assert not policy.needs_attention
    policy.note_attention(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize(("penalty", "beta"), [(1.0, 0.3), (0.0, 5.0), (0.6, 1.0)])
def test_wide_beams_with_coverage_find_what_enumeration_finds(penalty: float, beta: float) -> None:
    script, prompt, end = Attentive(5, 7), [1, 2], 4
    every = []
    for count in range(1, 5):
        for tokens in itertools.product(range(5), repeat=count):
            if end in tokens[:-1] or (tokens[-1] != end and count < 4):
                continue
            texts = [[*prompt, *tokens[:t]] for t in range(count)]
            total = sum(log_softmax(script.after(text))[token] for text, token in zip(texts, tokens, strict=True))
            covered = np.sum([script.attention(text) for text in texts], axis=0, dtype=np.float64)
            coverage = sum(np.log(min(amount, 1.0)) for amount in covered)
            every.append((total / count**penalty + beta * coverage, list(tokens)))
    every.sort(reverse=True)
    options = {"num_beams": 400, "max_new_tokens": 4, "early_stopping": "never", "eos_token_id": end}
    found = run(script, prompt, length_penalty=penalty, coverage_penalty=beta, num_return_sequences=12, **options)
    assert [h.token_ids for h in found] == [tokens for _, tokens in every[:12]]
    np.testing.assert_allclose([h.score for h in found], [score for score, _ in every[:12]], atol=1e-5)
    without = run(script, prompt, length_penalty=penalty, num_return_sequences=12, **options)
    assert [h.token_ids for h in without] != [h.token_ids for h in found]
    assert found[0].attention is None  # needed, not asked for


def test_coverage_of_a_position_without_any_attention() -> None:
    script = Attentive(5, 7)
    script.weights[..., 0] = 0
    found = run(script, [1], num_beams=2, coverage_penalty=1.0, max_new_tokens=3)
    assert np.isfinite(found[0].score)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_alternatives_are_first_tokens_completed(beams: int, penalty: float) -> None:
    script, prompt, end = Script(40, 11), [1, 2], 3
    script.table[1, 2, end] = 20  # an end token begins no alternative, however likely
    options = {"max_new_tokens": 9, "num_beams": beams, "eos_token_id": end, "length_penalty": penalty}
    found = run(script, prompt, return_alternatives=True, num_return_sequences=5, **options)
    row = script.after(prompt).copy()
    row[end] = -np.inf
    first = log_softmax(row)
    assert [h.token_ids[0] for h in found] == np.argsort(-first)[:5].tolist()
    options["max_new_tokens"] = 8
    if beams == 1:
        del options["length_penalty"]
    for h in found:
        rest = run(script, [*prompt, h.token_ids[0]], output_scores=True, **options)[0]
        assert h.token_ids[1:] == rest.token_ids
        assert h.finish_reason == rest.finish_reason
        assert rest.score is not None
        score = rest.score / len(rest.token_ids) ** penalty if beams == 1 else rest.score
        assert h.score == pytest.approx(first[h.token_ids[0]] + score, abs=1e-5)


def test_alternatives_below_a_probability() -> None:
    script = Script(40, 11)
    probability = np.sort(np.exp(log_softmax(script.after([1]))))[::-1]
    for bound, count in ((0.0, 6), ((probability[2] + probability[3]) / 2, 3), (1.0, 1)):
        options = {"return_alternatives": True, "num_return_sequences": 6, "min_alternative_expansion_prob": bound}
        assert len(run(script, [1], max_new_tokens=3, **options)) == count
    few = {"return_alternatives": True, "num_return_sequences": 6, "max_new_tokens": 3}
    assert len(run(script, [1], prefix_allowed_tokens_fn=lambda *_: [4, 5], **few)) == 2  # no more tokens are left
    assert [h.token_ids for h in run(script, [1], forced_eos_token_id=7, **(few | {"max_new_tokens": 1}))] == [[7]]
    only = run(script, [1], eos_token_id=7, prefix_allowed_tokens_fn=lambda *_: [7], **few)
    assert [(h.token_ids, h.finish_reason) for h in only] == [([7], "stop")]
    assert only[0].score == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
def test_alternatives_count_lengths_from_the_prompt(beams: int) -> None:
    """Options that count new tokens count the first one as well; a forced token comes before the position."""
    script, common = Script(40, 12), {"return_alternatives": True, "num_return_sequences": 4, "num_beams": beams}
    script.table[:, :, 3] += 4
    found = run(script, [1, 2], max_new_tokens=6, min_new_tokens=4, eos_token_id=3, **common)
    assert min(len(h.token_ids) for h in found) == 5
    assert max(len(h.token_ids) for h in found) <= 6
    for length, reason in ((1, "length"), (2, "length")):
        short = run(script, [1, 2], max_new_tokens=length, **common)
        assert {(len(h.token_ids), h.finish_reason) for h in short} == {(length, reason)}
    begun = run(script, [1, 2], max_new_tokens=3, begin_suppress_tokens=[3], **common)
    assert all(h.token_ids[0] != 3 for h in begun)
    assert any(3 in h.token_ids[1:] for h in begun)
    coded = run(script, [1], max_new_tokens=5, forced_bos_token_id=9, **common)
    assert {h.token_ids[0] for h in coded} == {9}
    assert len({h.token_ids[1] for h in coded}) == 4
    assert [h.token_ids for h in run(script, [1], max_new_tokens=1, forced_bos_token_id=9, **common)] == [[9]]
    stop = run(script, [1, 2], max_new_tokens=5, stopping_criteria=lambda ids, _: ids[:, -1] == 3, **common)
    assert {"criteria"} <= {h.finish_reason for h in stop}
    assert all(3 not in h.token_ids[:-1] for h in stop)


def test_alternatives_as_a_stream() -> None:
    script = Script(40, 13)
    policy = script.policy([1], return_alternatives=True, num_return_sequences=2, max_new_tokens=5, eos_token_id=3)
    assert policy.sequence_tokens(0) == []
    seen: list[list[int]] = []
    while not policy.finished:
        policy.advance(np.stack([script.after(policy.live_tokens(i)) for i in range(policy.num_live)]))
        seen.append(list(policy.sequence_tokens(1)))
    result = policy.results()[1].token_ids
    assert seen[: len(result)] == [result[:count] for count in range(1, len(result) + 1)]


class Translator:
    """A toy BART of transformers as a model for `drive`: logits and last-layer attention after decoder tokens."""

    def __init__(self, source: list[int]) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = transformers.BartConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.7,
            attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=0,
            decoder_start_token_id=2, forced_eos_token_id=None, tie_word_embeddings=False,
        )  # fmt: skip
        self.model = transformers.BartForConditionalGeneration(config).eval()
        self.model.generation_config = transformers.GenerationConfig()
        self.source = torch.tensor([source])
        with torch.no_grad():
            self._encoded = self.model.get_encoder()(self.source)
        self._known: dict[tuple[int, ...], Any] = {}

    def _run(self, tokens: Sequence[int]) -> Any:
        import torch

        if tuple(tokens) not in self._known:
            with torch.no_grad():
                self._known[tuple(tokens)] = self.model(
                    encoder_outputs=self._encoded,
                    decoder_input_ids=torch.tensor([list(tokens)]),
                    output_attentions=True,
                )
        return self._known[tuple(tokens)]

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.array(self._run(tokens).logits[0, -1].numpy())

    def attention(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.array(self._run(tokens).cross_attentions[-1][0, :, -1].mean(dim=0).numpy())


ENCODER_DECODER: list[dict[str, Any]] = [
    {"encoder_repetition_penalty": 2.5},
    {"encoder_repetition_penalty": 0.6, "repetition_penalty": 1.4},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2, "no_repeat_ngram_size": 2},
    {"forced_bos_token_id": 15, "begin_suppress_tokens": [5, 7, 9, 11]},
    {"begin_suppress_tokens": list(range(5, 40, 2))},
    {"min_length": 6, "eos_token_id": list(range(10, 40)), "max_length": 9},
    {"max_length": 5, "forced_eos_token_id": 4, "eos_token_id": 4},
    {"min_new_tokens": 3, "eos_token_id": list(range(20, 40)), "bad_words_ids": [[6], [8, 9]]},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("start", [[2], [2, 17, 5]], ids=["start", "prefix"])
def test_encoder_decoder_prompts(beams: int, start: list[int]) -> None:
    """Lengths count the decoder's tokens, its start included; the encoder's filters look at the source."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = [5, 15, 20, 20, 7, 5, 15, 30, 3]
    translator = Translator(source)
    texts = set()
    for extra in ({}, *ENCODER_DECODER):
        options = {"max_new_tokens": 8, "num_beams": beams, **extra}
        if "max_length" in extra:
            del options["max_new_tokens"]
        config = transformers.GenerationConfig(
            decoder_start_token_id=2, pad_token_id=0, return_dict_in_generate=True, output_scores=True, **options
        )
        output = translator.model.generate(
            translator.source, generation_config=config, decoder_input_ids=torch.tensor([start])
        )
        built = GenerationOptions.build({"decoder_start_token_id": 2}, options)
        policy = make_policy(start, built, vocab_size=40, source_ids=source)
        drive(translator, policy)
        expected = output.sequences[0, len(start) :].tolist()
        found = policy.results()[0]
        assert found.token_ids == expected[: len(found.token_ids)], extra
        assert set(expected[len(found.token_ids) :]) <= {0}
        texts.add(tuple(found.token_ids))
        if beams > 1:
            assert found.score == pytest.approx(float(output.sequences_scores[0]), abs=1e-5)
    assert len(texts) >= 6  # the options do something


@pytest.mark.filterwarnings("ignore")
def test_cross_attention_of_beams_against_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    translator = Translator([5, 31, 9, 12, 30, 3])
    config = transformers.GenerationConfig(
        decoder_start_token_id=2, pad_token_id=0, return_dict_in_generate=True, output_attentions=True, num_beams=3,
        max_new_tokens=6,
    )  # fmt: skip
    output = translator.model.generate(translator.source, generation_config=config)
    options = GenerationOptions.build({}, {"num_beams": 3, "max_new_tokens": 6, "return_alignments": True})
    policy = make_policy([2], options, vocab_size=40, source_ids=[5, 31, 9, 12, 30, 3])
    drive_with_attention(translator, policy)  # type: ignore[arg-type]
    found = policy.results()[0]
    assert found.token_ids == output.sequences[0, 1:].tolist()
    for t, beam in enumerate(output.beam_indices[0].tolist()):
        theirs = output.cross_attentions[t][-1][beam, :, -1].mean(dim=0)
        assert found.attention is not None
        assert torch.allclose(torch.tensor(found.attention[t]), theirs, atol=1e-5)
