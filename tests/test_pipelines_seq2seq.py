"""translation, summarization and text2text-generation: what transformers 4.53's pipelines gave for the same folders
(make_pipeline_fixtures.py), and what is pyllm's own: prefixes, alignments, scores, truncation that is said."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aren
import numpy as np
import pytest
from conftest import FIXTURES, data_path
from toy_pipelines import CONFIGS, TOKENIZERS, write

import pyllm
from pyllm.errors import (
    ContextLengthError,
    InvalidOptionError,
    PromptError,
    TokenizerError,
    UnknownOptionError,
    UnsupportedModelError,
)
from pyllm.pipelines.alignments import aligned, target_words, text_of

CASES: list[dict[str, Any]] = json.loads((FIXTURES / "seq2seq_pipelines.json").read_text(encoding="utf-8"))["cases"]
TEXTS = ["Hello world, how are you today?", "This is a test."]
Load = Callable[[str], pyllm.Seq2SeqModel]

pytestmark = pytest.mark.filterwarnings("ignore:a text has|summaries may have:UserWarning")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Loads a toy by name, once."""
    root, loaded = tmp_path_factory.mktemp("toys"), {}

    def load(name: str) -> pyllm.Seq2SeqModel:
        if name not in loaded:
            loaded[name] = pyllm.load(write(name, root, data_path(TOKENIZERS[name][0])))
        return loaded[name]

    yield load
    for model in loaded.values():
        model.close()


def _without_count(found: Any) -> Any:
    if isinstance(found, list):
        return [_without_count(each) for each in found]
    return {key: value for key, value in found.items() if key != "truncated_tokens"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}-{case['task']}-{json.dumps(case['call'])}")
@pytest.mark.filterwarnings("ignore:task 'translation' does not say:UserWarning")
def test_transformers_4(toy: Load, case: dict[str, Any]) -> None:
    pipe = pyllm.pipeline(case["task"], toy(case["model"]), **case["options"])
    found = pipe(case["inputs"], **case["call"])
    assert _without_count(found) == case["output"]
    if case["call"].get("truncation"):
        text = pipe.model.tokenizer.encode(case["inputs"], **{k: v for k, v in case["options"].items() if "lang" in k})
        assert found[0]["truncated_tokens"] == len(text) - 64


def test_recorded_cases_cover_every_toy() -> None:
    assert {case["model"] for case in CASES} == set(CONFIGS)


def test_batches_streams_and_singles_are_one(toy: Load) -> None:
    pipe = pyllm.pipeline("text2text-generation", toy("t5"), max_new_tokens=8)
    texts = [*TEXTS, "x", "Another text, longer than all of those before it: it goes on."]
    every = pipe(texts, return_scores=True)
    assert every == [pipe(text, return_scores=True)[0] for text in texts]
    assert every == pipe(texts, batch_size=3, return_scores=True)
    read: list[str] = []
    results = pipe((read.append(text) or text for text in texts), return_scores=True)
    assert read == []
    assert next(results) == every[:1]
    assert read == texts[:1]
    assert [records[0] for records in results] == every[1:]
    assert pipe([]) == []
    assert "".join(toy("t5").stream(TEXTS[0], max_new_tokens=8)) == pipe(TEXTS[0], num_beams=1)[0]["generated_text"]


def test_scores_and_tensors(toy: Load) -> None:
    pipe = pyllm.pipeline("text2text-generation", toy("t5"), max_new_tokens=6)
    for beams in (1, 3):
        record = pipe(TEXTS[0], num_beams=beams, return_scores=True, return_tensors=True, return_text=True)[0]
        ids = record["generated_token_ids"]
        assert set(record) == {"generated_text", "generated_token_ids", "score"}
        assert pipe.tokenizer.decode(ids) == record["generated_text"]
        scored = pipe.model.score(pipe.tokenizer.encode(TEXTS[0]), ids[1:])
        expected = scored.total / (scored.scored if beams > 1 else 1)
        assert record["score"] == pytest.approx(expected, abs=1e-4)


def test_target_prefixes(toy: Load) -> None:
    pipe = pyllm.pipeline("translation", toy("mbart"), src_lang="en_XX", tgt_lang="de_DE", max_new_tokens=6)
    prefixes = ["I have", "of the"]
    found = pipe(TEXTS, target_prefix=prefixes, return_tensors=True, return_text=True)
    for text, prefix, record in zip(TEXTS, prefixes, found, strict=True):
        assert record["translation_text"].startswith(prefix)
        forced = pipe.tokenizer.lang_to_id("de_DE")
        own = pipe.tokenizer.encode(prefix, add_special_tokens=False, target=True, tgt_lang="de_DE")
        assert record["translation_token_ids"][: 2 + len(own)] == [2, forced, *own]
        assert pipe(text, target_prefix=prefix)[0]["translation_text"] == record["translation_text"]
    assert pipe(TEXTS, target_prefix=prefixes, batch_size=1, return_tensors=True, return_text=True) == found
    languages = {"src_lang": "en_XX", "tgt_lang": "de_DE", "max_new_tokens": 6, "target_prefix": prefixes[0]}
    written = pipe.model.generate(TEXTS[0], **languages).text
    assert written == "".join(pipe.model.stream(TEXTS[0], **languages))
    assert written.startswith(prefixes[0])
    with pytest.raises(InvalidOptionError, match=r"got 3 for 2 inputs"):
        pipe(TEXTS, target_prefix=["a", "b", "c"])


def test_alternatives_and_coverage(toy: Load) -> None:
    pipe = pyllm.pipeline("translation_en_to_pt", toy("marian"), max_new_tokens=5)
    found = pipe(TEXTS[0], return_alternatives=True, num_return_sequences=4, num_beams=1, return_tensors=True)
    firsts = [record["translation_token_ids"][1] for record in found]
    logits = pipe.model.logits([54775], source=TEXTS[0])[0]
    assert firsts == np.argsort(-logits)[:4].tolist()
    plain, covered = (pipe(TEXTS[0], coverage_penalty=b, return_scores=True)[0]["score"] for b in (0.0, 2.0))
    assert covered < plain  # attention that sums to less than one somewhere


def test_alignments(toy: Load) -> None:
    pipe = pyllm.pipeline("translation_en_to_de", toy("t5"))
    source = "Hello world,  how are you?"
    record = pipe(source, return_alignments=True, return_tensors=True, return_text=True)[0]
    attention, target = record["attention"], record["translation_text"].split()
    read = pipe.tokenizer.encode("translate English to German: " + source)
    assert attention.shape == (len(record["translation_token_ids"]) - 1, len(read))
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)
    assert [pipe.tokenizer.token_to_id(token) for token in record["source_tokens"]] == read
    assert len(record["target_tokens"]) == len(attention)
    assert {j for _, j in record["alignments"]} == set(range(len(target)))
    assert {i for i, _ in record["alignments"]} <= set(range(len(source.split())))
    # The first target word comes from the word of the source that its first token attends to most.
    begin = len(pipe.tokenizer.encode("translate English to German:", add_special_tokens=False))
    best = begin + int(attention[0, begin:-1].argmax())
    word = sum(piece.startswith("\u2581") for piece in record["source_tokens"][begin : best + 1]) - 1
    assert (word, 0) in record["alignments"]
    captured = pipe.model.attentions(record["translation_token_ids"][:-1], source=read, layers=[-1], cross=True)
    np.testing.assert_array_equal(attention, captured[0].mean(axis=0))


def test_alignments_of_a_real_model_follow_the_text(tmp_path: Path) -> None:
    """Letter by letter from Arabic into Latin: no letter is written from one that lies far off, or before the last."""
    data = data_path("models/aren-transliteration-ct2")
    aren.convert(data, tmp_path)
    cases = json.loads((data / "expected.json").read_text(encoding="utf-8"))["translate"]
    with pyllm.load(tmp_path) as model:
        records = pyllm.pipeline("translation", model)([case["source"] for case in cases], return_alignments=True)
    assert [record["translation_text"] for record in records] == [case["greedy_and_beam4"] for case in cases]
    for record in records:
        pairs = record["alignments"]
        assert [j for _, j in pairs] == list(range(len(record["translation_text"].split())))
        assert [i for i, _ in pairs] == sorted(i for i, _ in pairs)
        assert max(abs(i - j) for i, j in pairs) <= 2


def test_alignments_go_by_words() -> None:
    attention = np.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9]], np.float32)
    assert aligned(attention, [0, 1, None], [[0], [0, 1], [1], []]) == [(0, 0), (1, 0), (1, 1)]
    assert aligned(attention, [None, None, None], [[0], [0], [1], []]) == []


def test_words_of_target_tokens(toy: Load) -> None:
    tokenizer = toy("marian").tokenizer
    text = "Olá mundo, 漢字 não é"
    ids = tokenizer.encode(text, target=True)
    words = target_words(tokenizer, [54775, *ids])
    shown = tokenizer.decode(ids).split()
    assert list(words[0]) == list(words[-1]) == []
    spelled = ["" for _ in shown]
    for id, own in zip(ids, words[1:], strict=True):
        assert len(own) == (id not in tokenizer.special_ids) or tokenizer.id_to_token(id) == "\u2581"
        for word in own:
            spelled[word] += (tokenizer.id_to_token(id) or "").replace("\u2581", "")
    assert spelled == shown


def test_words_are_those_of_the_text_that_is_returned(toy: Load) -> None:
    tokenizer = toy("marian").tokenizer  # its own files ask for a clean-up, the pipeline for none by default
    pieces = ("\u2581Sim", "\u2581", ",", "\u2581senhor", "</s>")
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    told = {False: ("Sim , senhor", [[0], [1], [1], [2], []]), True: ("Sim, senhor", [[0], [0], [0], [1], []])}
    for clean_up, (text, words) in told.items():
        assert text_of(tokenizer, ids, clean_up) == text
        assert [list(own) for own in target_words(tokenizer, ids, clean_up)] == words


def test_a_language_is_asked_for_in_the_source(toy: Load) -> None:
    pipe = pyllm.pipeline("translation", toy("marian"), max_new_tokens=5)
    asked = pipe("Hello there", tgt_lang="por", return_alignments=True)[0]
    assert asked["source_tokens"] == [">>por<<", "\u2581Hello", "\u2581there", "</s>"]
    assert asked["translation_text"] == pipe(">>por<< Hello there")[0]["translation_text"]
    assert asked["translation_text"] != pipe("Hello there")[0]["translation_text"]
    named = pyllm.pipeline("translation_en_to_por", toy("marian"), max_new_tokens=5)
    assert named("Hello there")[0]["translation_text"] == asked["translation_text"]
    assert pipe("word " * 90, tgt_lang="por", truncation=True)[0]["truncated_tokens"] == 28
    with pytest.raises(TokenizerError, match=r"got 'deu'"):
        pipe("x", tgt_lang="deu")


def test_a_text_that_is_too_long(toy: Load) -> None:
    pipe = pyllm.pipeline("translation_en_to_pt", toy("marian"), max_new_tokens=4)
    with pytest.raises(ContextLengthError, match=r"input 1: .*got 91 tokens for a length of 64.*truncation=True"):
        pipe(["word", "word " * 90])
    cut = pipe(["word", "word " * 90], truncation=True)
    assert "truncated_tokens" not in cut[0]
    assert cut[1]["truncated_tokens"] == 27
    assert cut[1]["translation_text"] == pipe("word " * 63)[0]["translation_text"]


def test_languages(toy: Load) -> None:
    pipe = pyllm.pipeline("translation", toy("mbart"), max_new_tokens=4)
    with pytest.raises(TokenizerError, match="pass tgt_lang="):
        pipe("x", src_lang="en_XX")
    with pytest.raises(TokenizerError, match=r"got 'de'.*de_DE"):
        pyllm.pipeline("translation_en_to_de", toy("mbart"))("x")
    named = pyllm.pipeline("translation_en_XX_to_ro_RO", toy("mbart"), max_new_tokens=4)
    assert named(TEXTS[0]) == pipe(TEXTS[0], src_lang="en_XX", tgt_lang="ro_RO")
    with pytest.warns(UserWarning, match="no languages"):
        pyllm.pipeline("translation_en_to_de", toy("t5"), max_new_tokens=4)("x", src_lang="en_XX")


def test_layers_of_options(toy: Load) -> None:
    summarize = pyllm.pipeline("summarization", toy("t5"))
    chosen = summarize._settings({})["plan"].generation
    assert (chosen.max_length, chosen.max_new_tokens, chosen.num_beams, chosen.min_length) == (20, None, 4, 8)
    chosen = summarize._settings({"max_new_tokens": 9, "num_beams": 2})["plan"].generation
    assert (chosen.max_length, chosen.max_new_tokens, chosen.num_beams) == (None, 9, 2)
    plain = pyllm.pipeline("text2text-generation", toy("t5"))
    assert plain._settings({})["plan"].generation.max_new_tokens == 256
    assert plain._settings({})["plan"].prefix == ""
    translate = pyllm.pipeline("translation_en_to_fr", toy("t5"), num_beams=3)
    settings = translate._settings({})["plan"]
    assert (settings.prefix, settings.generation.num_beams) == ("translate English to French: ", 3)


def test_warnings_are_given_where_they_are_true(toy: Load) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"a text has 23 tokens, its translation may have 15"):
            pyllm.pipeline("translation_en_to_de", toy("t5"))(TEXTS[0])
        with pytest.raises(UserWarning, match=r"up to 19 tokens, a text has 15 only"):
            pyllm.pipeline("summarization", toy("t5"))(TEXTS[1])
        with pytest.raises(UserWarning, match=r"no parameters for 'translation_en_to_ro'.*translation_en_to_de"):
            pyllm.pipeline("translation_en_to_ro", toy("t5"))
        pyllm.pipeline("translation_en_to_de", toy("t5"), max_length=40)(TEXTS[1])


def test_wrong_use(toy: Load) -> None:
    pipe = pyllm.pipeline("text2text-generation", toy("t5"))
    for inputs in (5, None, ["x", 5], {"x": 1}):
        with pytest.raises(PromptError, match=r"takes a str"):
            pipe(inputs)
    for options, error, message in (
        ({"return_tensor": True}, UnknownOptionError, "did you mean 'return_tensors'"),
        ({"num_beam": 2}, UnknownOptionError, "did you mean 'num_beams'"),
        ({"return_text": False}, InvalidOptionError, "nothing to return"),
        ({"truncation": "yes"}, InvalidOptionError, "truncation must"),
        ({"stop_sequence": "a", "stop": "b"}, InvalidOptionError, "the same option"),
        ({"num_return_sequences": 5}, InvalidOptionError, "num_beams=4"),
    ):
        with pytest.raises(error, match=message):
            pipe("x", **options)
    with pytest.raises(UnsupportedModelError, match="needs an encoder-decoder"):
        pyllm.pipeline("summarization", pyllm.default_model())
    with pytest.raises(InvalidOptionError, match="the tasks are"):
        pyllm.pipeline("translation_", toy("t5"))
