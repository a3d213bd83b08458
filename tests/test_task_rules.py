"""The rules behind the encoders' pipelines as pure functions: windows, cutting, answers, entities, labels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from task_models import write_folder

from pyllm.errors import ContextLengthError, InvalidConfigError
from pyllm.pipelines import answer_spans, entities, labels, windows
from pyllm.pipelines.answer_spans import TokenSpan
from pyllm.pipelines.entities import Token
from pyllm.tokenization import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_folder(tmp_path_factory.mktemp("rules"), "bert", "base"), {})


@pytest.mark.parametrize(("length", "size", "stride"), list(itertools.product((1, 7, 8, 9, 30), (8, 9), (0, 3, 7))))
def test_windows_cover_everything_and_overlap_by_the_stride(length: int, size: int, stride: int) -> None:
    found = windows.windows(length, size, stride)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - begin == size for begin, end in found[:-1])
    assert all(before[1] - after[0] == stride for before, after in itertools.pairwise(found))
    assert all(end < length for _, end in found[:-1])


def test_windows_equal_those_of_the_library(tokenizer: Tokenizer) -> None:
    core = tokenizer._backend._core  # type: ignore[attr-defined]
    text = "the small cat is on the river " * 9
    core.enable_truncation(20, stride=6)
    try:
        whole = core.encode(text, add_special_tokens=True)
        wanted = [whole.ids, *(each.ids for each in whole.overflowing)]
    finally:
        core.no_truncation()
    found = windows.divide(tokenizer, "test", text, 20, 6)
    assert [each.ids for each in found] == wanted
    places = [text[begin:end] for each in found for begin, end in each.offsets if end]
    assert set(places) == set(text.split())


@pytest.mark.parametrize(("first", "second"), list(itertools.product((0, 1, 5, 9, 10, 11, 30), repeat=2)))
@pytest.mark.parametrize("room", [1, 10, 11, 20])
def test_the_longer_text_is_cut_first(tokenizer: Tokenizer, first: int, second: int, room: int) -> None:
    core = tokenizer._backend._core  # type: ignore[attr-defined]
    core.enable_truncation(room, strategy="longest_first")
    try:
        encoding = core.encode("a " * first, "a " * second, add_special_tokens=False)
    finally:
        core.no_truncation()
    wanted = encoding.sequence_ids.count(0), encoding.sequence_ids.count(1)
    assert windows.shortened(first, second, room, "longest_first") == wanted


def test_texts_are_fitted_from_the_side_that_the_tokenizer_says(tokenizer: Tokenizer) -> None:
    text, pair = "the cat is small", "a dog"
    whole = windows.fit(tokenizer, "test", text, pair, 9)
    assert (whole.cut, whole.encoding) == (0, tokenizer.encode_plus(text, pair))
    fitted = windows.fit(tokenizer, "test", text, pair, 7, "only_first")
    assert (fitted.cut, fitted.encoding.ids) == (2, tokenizer.encode("the cat", pair=pair))
    assert fitted.encoding.offsets[1:3] == [(0, 3), (4, 7)]
    tokenizer.truncation_side = "left"
    try:
        left = windows.fit(tokenizer, "test", text, pair, 7, "only_first")
    finally:
        tokenizer.truncation_side = "right"
    assert left.encoding.ids == tokenizer.encode("is small", pair=pair)
    assert left.encoding.offsets[1:3] == [(8, 10), (11, 16)]
    with pytest.raises(ContextLengthError, match="got 4 of the text and 2 of its pair"):
        windows.fit(tokenizer, "test", text, pair, 6, "only_second")


def brute_force(
    start: np.ndarray, end: np.ndarray, inside: list[bool], cls: int | None, longest: int
) -> dict[tuple[int, int], float]:
    """Every span's score by the definition."""
    candidates = [at for at in range(len(start)) if inside[at] or at == cls]
    p = np.exp(start - start[candidates].max()) / np.exp(start[candidates] - start[candidates].max()).sum()
    q = np.exp(end - end[candidates].max()) / np.exp(end[candidates] - end[candidates].max()).sum()
    places = [at for at in range(len(start)) if inside[at]]
    return {(s, e): p[s] * q[e] for s in places for e in places if s <= e < s + longest}


@pytest.mark.parametrize(("longest", "top_k"), [(1, 3), (4, 1), (4, 5), (50, 200)])
def test_the_best_spans_are_found(longest: int, top_k: int) -> None:
    random = np.random.default_rng(longest)
    start, end = random.normal(size=(2, 12)).astype(np.float32) * 3
    inside = [False, False, False, *[True] * 8, False]
    found, null = answer_spans.window_spans(start, end, inside, 0, top_k=top_k, max_answer_len=longest)
    every = brute_force(start.astype(float), end.astype(float), inside, 0, longest)
    wanted = sorted(every.items(), key=lambda item: -item[1])[:top_k]
    assert [(span.start, span.end) for span in found] == [place for place, _ in wanted]
    np.testing.assert_allclose([span.score for span in found], [score for _, score in wanted], rtol=1e-12)
    candidates = [0, *range(3, 11)]
    np.testing.assert_allclose(
        null,
        np.exp(start[0] - np.log(np.exp(start[candidates].astype(float)).sum()))
        * np.exp(end[0] - np.log(np.exp(end[candidates].astype(float)).sum())),
    )
    assert answer_spans.window_spans(start, end, inside, None, top_k=1, max_answer_len=longest)[1] == 0.0


def test_overwhelming_logits_give_probabilities() -> None:
    start, end = np.zeros((2, 5), np.float32)
    start[2], end[3] = 1e4, 3e4
    ((best,), null) = answer_spans.window_spans(start, end, [False, *[True] * 4], 0, top_k=1, max_answer_len=4)
    assert best == TokenSpan(2, 3, 1.0)
    assert null == 0.0


def test_words_are_taken_whole_within_the_text_they_belong_to() -> None:
    offsets = [(0, 0), (0, 3), (0, 0), (0, 4), (4, 6), (7, 9), (9, 10), (0, 0)]
    words = [None, 0, None, 0, 0, 1, None, None]
    sequences = [None, 0, None, 1, 1, 1, 1, None]
    span = TokenSpan(4, 5, 1.0)
    assert answer_spans.character_span(span, offsets, words, sequences, True) == (0, 9)
    assert answer_spans.character_span(span, offsets, words, sequences, False) == (4, 9)
    assert answer_spans.character_span(TokenSpan(4, 6, 1.0), offsets, words, sequences, True) == (4, 10)


def test_answers_with_the_same_text_are_one() -> None:
    found = [(0.2, 0, 3), (0.3, 4, 7), (0.15, 8, 11)]
    assert answer_spans.ranked(found, "The one the", None, 5) == [
        {"score": pytest.approx(0.35), "start": 0, "end": 3, "answer": "The"},
        {"score": 0.3, "start": 4, "end": 7, "answer": "one"},
    ]
    assert answer_spans.ranked(found, "The one the", 0.32, 2)[1] == {"score": 0.32, "start": 0, "end": 0, "answer": ""}


NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}


def token(word: str, start: int, scores: list[float], continues: bool = False) -> Token:
    return Token(word, np.array(scores), start + 1, start, start + len(word.removeprefix("##")), continues)


TOKENS = [
    token("mi", 0, [0.1, 0.6, 0.2, 0.1]),
    token("##cro", 2, [0.0, 0.1, 0.9, 0.0], True),
    token("of", 6, [0.9, 0.1, 0.0, 0.0]),
    token("ada", 9, [0.1, 0.2, 0.7, 0.0]),
    token("bob", 13, [0.1, 0.2, 0.7, 0.0]),
    token("eve", 17, [0.1, 0.7, 0.2, 0.0]),
    token("ulm", 21, [0.1, 0.0, 0.2, 0.7]),
]


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("simple", [("PER", 0.75, "mi ##cro", 0, 5)]),
        ("first", [("PER", 0.6, "mi##cro", 0, 5)]),
        ("max", [("PER", 0.9, "mi##cro", 0, 5)]),
        ("average", [("PER", 0.55, "mi##cro", 0, 5)]),
    ],
)
def test_strategies_label_words(strategy: str, wanted: list[Any]) -> None:
    def join(words: Any) -> str:
        return " ".join(words).replace(" ##", "##") if strategy != "simple" else " ".join(words)

    found = entities.entities(TOKENS, NAMES, strategy, join)
    rest = [
        ("O", 0.9, "of", 6, 8),
        ("PER", 0.7, "ada bob", 9, 16),
        ("PER", 0.7, "eve", 17, 20),
        ("LOC", 0.7, "ulm", 21, 24),
    ]
    assert [tuple(each.values()) for each in found] == [
        (group, pytest.approx(score), word, start, end) for group, score, word, start, end in wanted + rest
    ]
    assert list(found[0]) == ["entity_group", "score", "word", "start", "end"]


def test_without_a_strategy_each_token_is_an_entity() -> None:
    first, *rest = entities.entities(TOKENS, NAMES, "none", "".join)
    assert first == {"entity": "B-PER", "score": 0.6, "index": 1, "word": "mi", "start": 0, "end": 2}
    assert len(rest) == 6


def test_of_overlapping_entities_the_longer_then_the_surer_stays() -> None:
    def entity(start: int, end: int, score: float) -> dict[str, Any]:
        return {"start": start, "end": end, "score": score}

    given = [entity(8, 12, 0.5), entity(0, 4, 0.9), entity(2, 7, 0.1), entity(8, 12, 0.6), entity(12, 13, 0.2)]
    assert entities.without_overlaps(given) == [entity(2, 7, 0.1), entity(8, 12, 0.6), entity(12, 13, 0.2)]
    assert entities.without_overlaps([]) == []


def test_label_names_and_functions() -> None:
    assert labels.id2label({"id2label": {"0": "no", "1": "yes"}}, 3) == {0: "no", 1: "yes", 2: "LABEL_2"}
    assert labels.label2id({"id2label": {"0": "no", "1": "yes"}}, 2) == {"no": 0, "yes": 1}
    for wrong in ({"id2label": ["no"]}, {"id2label": {"x": "no"}}):
        with pytest.raises(InvalidConfigError, match="id2label must map numbers to labels"):
            labels.id2label(wrong, 2)
    with pytest.raises(InvalidConfigError, match="label2id must map labels to numbers from 0 to 1"):
        labels.label2id({"label2id": {"no": 2}}, 2)
    kinds = [
        labels.default_function({"problem_type": kind}, 2) for kind in ("regression", "multi_label_classification")
    ]
    assert kinds == ["none", "sigmoid"]
    assert [labels.default_function({}, count) for count in (1, 2)] == ["sigmoid", "softmax"]
    np.testing.assert_allclose(labels.sigmoid(np.array([-1e4, 0, 1e4], np.float32)), [0, 0.5, 1])
    np.testing.assert_allclose(labels.softmax(np.array([1e4, 1e4], np.float32)), [0.5, 0.5])
