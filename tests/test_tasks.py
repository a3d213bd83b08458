"""The pipelines of encoders: what transformers 4 answered (fixtures/tasks), calls, streams, limits and errors."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, data_path, toy_folder
from task_cases import ANSWER_OPTIONS, CASES, LONG, masked, summary
from task_models import write_folder

import pyllm
from pyllm.devices import cuda_driver
from pyllm.errors import (
    ContextLengthError,
    DeviceError,
    InvalidOptionError,
    PromptError,
    UnknownOptionError,
    UnsupportedModelError,
)

FAMILIES = ("bert", "roberta")
QUESTION = {"question": "Who is the king?", "context": "John is the great king of Paris. Mary is not."}
Load = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A toy encoder by family and head, loaded once."""
    models: dict[tuple[str, str], Any] = {}

    def get(family: str, head: str) -> Any:
        if (family, head) not in models:
            folder = write_folder(tmp_path_factory.mktemp("tasks") / f"{family}-{head}", family, head)
            models[family, head] = pyllm.load(folder, dtype="float32")
        return models[family, head]

    yield get
    for model in models.values():
        model.close()


@pytest.fixture
def pipe(load: Load) -> Callable[..., Any]:
    """A pipeline on bert."""

    def make(task: str, head: str | None = None, **defaults: Any) -> Any:
        return pyllm.pipeline(task, load("bert", head or task), **defaults)

    return make


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """Where two results differ; numbers may by 2e-5 absolute or relative."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        return [each for key in wanted for each in differences(found[key], wanted[key], f"{where}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return [each for i in range(len(wanted)) for each in differences(found[i], wanted[i], f"{where}[{i}]")]
    if isinstance(wanted, float) and isinstance(found, float):
        same = abs(found - wanted) <= 2e-5 * max(1.0, abs(wanted))
    else:
        same = type(found) is type(wanted) and found == wanted
    return [] if same else [f"{where}: {found!r} is not {wanted!r}"]


def without_cuts(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: value for key, value in result.items() if key != "truncated_tokens"}
    return [without_cuts(each) for each in result] if isinstance(result, list) else result


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("task", "head"), CASES)
def test_results_are_those_of_transformers(load: Load, family: str, task: str, head: str) -> None:
    records = json.loads((FIXTURES / "tasks" / f"{family}.json").read_text())
    for record in (each for each in records if (each["task"], each["head"]) == (task, head)):
        case = CASES[task, head][record["case"]]
        pipeline = pyllm.pipeline(task, load(family, head), **case.get("defaults", {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # targets that are no tokens
            result = pipeline(masked(case["inputs"], pipeline.tokenizer.mask_token), **case.get("options", {}))
        assert not differences(without_cuts(summary(task, result)), record["result"]), case


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers_on_xquad(load: Load, family: str) -> None:
    contexts = {}
    for language in ("en", "zh"):
        for each in json.loads(data_path(f"corpora/xquad/xquad.{language}.json").read_text("utf-8"))["data"]:
            for paragraph in each["paragraphs"]:
                for qa in paragraph["qas"]:
                    contexts[language, qa["id"]] = {"question": qa["question"], "context": paragraph["context"]}
    pipeline = pyllm.pipeline("question-answering", load(family, "question-answering"))
    records = json.loads((FIXTURES / "tasks" / f"{family}-xquad.json").read_text())
    assert len(records) == 20
    for record in records:
        example = contexts[record["language"], record["id"]]
        result = pipeline(example, **ANSWER_OPTIONS[record["options"]])
        answers = result if isinstance(result, list) else [result]
        assert not differences([[a["score"], a["start"], a["end"]] for a in answers], record["answers"]), record
        assert all(a["answer"] == example["context"][a["start"] : a["end"]] for a in answers)


def test_streams_are_read_as_they_are_answered(pipe: Callable[..., Any]) -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for index in range(6):
            read.append(index)
            yield f"the [MASK] {index}"

    unmask = pipe("fill-mask", "masked-lm")
    stream = unmask(texts(), top_k=1)
    assert read == []
    first = next(stream)
    assert read == [0]
    assert [first, *stream] == unmask([f"the [MASK] {index}" for index in range(6)], top_k=1)
    read.clear()
    next(unmask(texts(), batch_size=4))
    assert read == [0, 1, 2, 3]
    with pytest.raises(UnknownOptionError):  # at the call, not at the first result
        unmask(texts(), topk=3)


def test_data_sets_with_items_are_streams(pipe: Callable[..., Any]) -> None:
    class Items:  # what transformers' KeyDataset looks like
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return ["a cat", "a dog", "london"][index]

    classify = pipe("text-classification", "sentiment")
    assert list(classify(Items(), batch_size=2)) == classify(["a cat", "a dog", "london"])


def test_batches_change_nothing(pipe: Callable[..., Any]) -> None:
    texts = ["a small cat", "the water is blue and old", "dogs", "Paris ! " * 9]
    for task, head in (("text-classification", "sentiment"), ("ner", "token-classification")):
        task_pipe = pipe(task, head)
        wanted = [task_pipe([text])[0] for text in texts]
        assert task_pipe(texts) == wanted
        assert task_pipe(texts, batch_size=3) == wanted
        assert list(task_pipe(iter(texts), batch_size=2, num_workers=0, padding=True)) == wanted


def test_rows_that_are_wanted_are_those_of_the_whole(load: Load) -> None:
    model = load("bert", "masked-lm")
    texts = [model.tokenizer.encode(text) for text in ("a small cat", "the water is blue and old")]
    whole = model.forward(texts)
    some = model.forward(texts, rows=[[1], [0, 2, 6]])
    np.testing.assert_array_equal(some[0], whole[0][[1]])
    np.testing.assert_array_equal(some[1], whole[1][[0, 2, 6]])
    for rows in ([[1]], [[1], []], [[0], [8]], [[0], [-1]], [[0], [2, 1]]):
        with pytest.raises(PromptError, match="rows must be some of each text's tokens, ascending"):
            model.forward(texts, rows=rows)
    with pytest.raises(InvalidOptionError, match="rows are those of a head"):
        load("bert", "sentiment").forward(texts, rows=[[0], [0]])


def test_question_answering_takes_every_form_of_input(pipe: Callable[..., Any]) -> None:
    class Example:
        question_text, context_text = QUESTION["question"], QUESTION["context"]

    ask = pipe("question-answering", max_answer_len=3)
    other = {"question": "Who is not?", "context": QUESTION["context"]}
    one, two = ask(QUESTION), ask(**other)
    assert one.keys() == {"score", "start", "end", "answer"}
    forms = [ask(**QUESTION), ask([QUESTION]), ask(Example()), ask(*QUESTION.values()), ask(data=QUESTION)]
    assert all(each == one for each in forms)
    several = [
        ask([QUESTION, other]),
        ask(QUESTION, other),
        ask(question=[QUESTION["question"], "Who is not?"], context=QUESTION["context"]),
        ask(question=[QUESTION["question"], "Who is not?"], context=[QUESTION["context"]] * 2, batch_size=1),
        list(ask(iter([QUESTION, other]))),
    ]
    assert all(each == [one, two] for each in several)
    with pytest.warns(UserWarning, match="topk is the old name"):
        assert ask(QUESTION, topk=2) == ask(QUESTION, top_k=2)


def test_a_null_answer_is_given_only_where_it_may_be(pipe: Callable[..., Any]) -> None:
    ask = pipe("question-answering")
    every = ask(QUESTION, top_k=500, handle_impossible_answer=True)
    assert [each for each in every if each["answer"] == ""] == [each for each in every if each["end"] == 0]
    assert sum(each["answer"] == "" for each in every) == 1
    assert all(each["answer"] for each in ask(QUESTION, top_k=500))
    assert sum(each["score"] for each in every) <= 1 + 1e-9


def test_long_questions_are_refused_or_cut_aloud(pipe: Callable[..., Any]) -> None:
    ask = pipe("question-answering")
    long = {**QUESTION, "question": "who " * 400}
    with pytest.raises(ContextLengthError, match="got 400 tokens of a question for a length of 384"):
        ask(long)
    answer = ask(long, max_question_len=10)
    assert answer.pop("truncated_tokens") == 390
    assert answer == ask({**QUESTION, "question": "who " * 10})
    with pytest.raises(InvalidOptionError, match="doc_stride must be less than the tokens a window has room for"):
        ask(question="who", context="the " * 400, max_seq_len=50, doc_stride=48)
    with pytest.raises(InvalidOptionError, match="max_seq_len must be at most the model's length, got 385 for 384"):
        ask(QUESTION, max_seq_len=385)


LONG_CALLS = [
    ("fill-mask", "masked-lm", "[MASK] " + LONG, {}),
    ("text-classification", "sentiment", LONG, {}),
    ("token-classification", "token-classification", LONG, {}),
    ("zero-shot-classification", "nli", LONG, {"candidate_labels": ["water"]}),
    ("feature-extraction", "base", LONG, {}),
    ("embeddings", "base", LONG, {}),
]


@pytest.mark.parametrize(("task", "head", "text", "options"), LONG_CALLS)
def test_nothing_is_cut_in_silence(
    pipe: Callable[..., Any], task: str, head: str, text: str, options: dict[str, Any]
) -> None:
    task_pipe = pipe(task, head, **options)
    length = len(task_pipe.tokenizer.encode(text))
    with pytest.raises(ContextLengthError, match=r"got \d+ .*128|128 .*got \d+"):
        task_pipe(text)
    if task in ("feature-extraction", "embeddings"):
        with pytest.warns(UserWarning, match=f"{length - 128} of {length} tokens .* were cut"):
            task_pipe(text, truncation=True)
        return
    result = task_pipe(text, truncation=True)
    records = result if isinstance(result, list) else [result]
    extra = len(task_pipe.tokenizer.encode("This example is water.")) - 1 if "zero" in task else 0
    assert {record["truncated_tokens"] for record in records} == {length - 128 + extra}
    whole = task_pipe("[MASK] the" if task == "fill-mask" else "the", truncation=True)
    assert all("truncated_tokens" not in each for each in (whole if isinstance(whole, list) else [whole]))


def test_a_mask_that_was_cut_is_no_mask(pipe: Callable[..., Any]) -> None:
    with pytest.raises(PromptError, match="a text must have a mask"):
        pipe("fill-mask", "masked-lm")(LONG + "[MASK]", truncation=True)


def test_words_of_pretokenized_texts_keep_their_places(pipe: Callable[..., Any]) -> None:
    ner = pipe("ner", "token-classification", aggregation_strategy="first", ignore_labels=[])
    words = ["Ada", "lives", "in", "Paris"]
    found = ner(words, is_split_into_words=True)
    assert found == [ner("Ada lives in Paris")]
    assert ner([words, ["Ada"]], is_split_into_words=True, delimiter=" ")[0] == found[0]
    assert list(ner(iter([words]), is_split_into_words=True)) == found
    with pytest.raises(InvalidOptionError, match="stride=8 needs an aggregation_strategy"):
        ner("x", stride=8, aggregation_strategy="none")


def test_features_and_embeddings(pipe: Callable[..., Any], load: Load) -> None:
    features = pipe("feature-extraction", "base")("A small cat", return_tensors=True)
    assert features.dtype == np.float32
    assert features.shape == (1, 5, 32)
    np.testing.assert_array_equal(features[0], load("bert", "base").encode("A small cat"))
    generator = pyllm.pipeline("text-generation").model
    hidden = pyllm.pipeline("feature-extraction", generator)("It was")
    assert np.array(hidden).shape == (1, len(generator.tokenizer.encode("It was")), 256)
    embed = pipe("embeddings", "base", pooling="cls")
    vectors = embed(["A small cat", "the war", "a red cat"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], embed("A small cat"))
    np.testing.assert_array_equal(np.stack(list(embed(iter(["A small cat", "the war"])))), vectors[:2])
    np.testing.assert_array_equal(embed("A small cat", normalize=False), features[0, 0])
    assert embed([]).shape == (0, 32)
    compare = pipe("sentence-similarity", "base", pooling="cls")
    given = {"source_sentence": "A small cat", "sentences": ["the war", "a red cat"]}
    np.testing.assert_allclose(compare(given), vectors[1:] @ vectors[0], rtol=1e-5)
    assert compare(**given) == compare([given, given])[1] == compare(given)


CONSTRUCTIONS: list[tuple[str, str, dict[str, Any], type[Exception], str]] = [
    (
        "question-answering",
        "base",
        {},
        UnsupportedModelError,
        r"a question-answering head .*got BertModel: encoder",
    ),
    ("fill-mask", "question-answering", {}, UnsupportedModelError, "ForMaskedLM.*got BertForQuestionAnswering"),
    ("text-generation", "masked-lm", {}, UnsupportedModelError, r"needs a decoder .*ForCausalLM.*got BertForMaskedLM"),
    ("sentence-similarty", "base", {}, InvalidOptionError, "did you mean 'sentence-similarity'"),
    ("ner", "token-classification", {"agregation_strategy": "x"}, UnknownOptionError, "mean 'aggregation_strategy'"),
    ("ner", "token-classification", {"aggregation_strategy": "best"}, InvalidOptionError, "one of none, simple, first"),
    ("fill-mask", "masked-lm", {"top_k": 0, "targets": 5}, InvalidOptionError, "top_k must .*; targets must"),
    ("fill-mask", "masked-lm", {"max_length": 5}, InvalidOptionError, "max_length needs truncation=True"),
    ("fill-mask", "masked-lm", {"devcie": "cpu"}, UnknownOptionError, "did you mean 'device'"),
]


@pytest.mark.parametrize(("task", "head", "options", "error", "message"), CONSTRUCTIONS)
def test_wrong_constructions(
    load: Load, task: str, head: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pyllm.pipeline(task, load("bert", head), **options)


CALLS: list[tuple[str, str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("fill-mask", "masked-lm", ("no mask",), {}, PromptError, r"must have a mask, got none .*put \[MASK\]"),
    ("fill-mask", "masked-lm", (["[MASK]", 3, "x", None],), {}, PromptError, "input 1: .*input 3: .*got NoneType"),
    ("fill-mask", "masked-lm", ("[MASK]",), {"targets": ["cat", " "]}, InvalidOptionError, r"got none for \[' '\]"),
    ("fill-mask", "masked-lm", ({"x": 1},), {}, PromptError, "takes a str, or a list or generator of them, got dict"),
    ("text-classification", "sentiment", ({"text": "x", "pair": "y"},), {}, PromptError, "text_pair"),
    ("text-classification", "sentiment", ([["x", "y"]],), {}, PromptError, "text_pair"),
    ("text-classification", "sentiment", (["a", LONG],), {}, ContextLengthError, "input 1: .*for a length of 128"),
    ("zero-shot-classification", "nli", ("x",), {}, InvalidOptionError, "candidate_labels must name"),
    ("zero-shot-classification", "nli", ("x", "a"), {"hypothesis_template": "no"}, InvalidOptionError, "must have {}"),
    ("zero-shot-classification", "nli", ("x", "a"), {"hypothesis_template": "{x}"}, InvalidOptionError, "must have {}"),
    ("zero-shot-classification", "sentiment", ("x", "a"), {}, UnsupportedModelError, "begins with 'entail', got NEG"),
    ("question-answering", "question-answering", (), {"question": "x"}, PromptError, "got question=str and context=No"),
    ("question-answering", "question-answering", ({"question": ""},), {}, PromptError, "question and context must be"),
    ("question-answering", "question-answering", (), {}, PromptError, "got none of these"),
    ("question-answering", "question-answering", ("a", " "), {}, PromptError, "a context must have tokens"),
    ("sentence-similarity", "base", ({"source_sentence": "x"},), {}, PromptError, "takes a dict"),
    ("embeddings", "base", ("x",), {"pooling": "middle"}, InvalidOptionError, "pooling must be"),
]


@pytest.mark.parametrize(("task", "head", "given", "options", "error", "message"), CALLS)
def test_wrong_calls(
    pipe: Callable[..., Any],
    task: str,
    head: str,
    given: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        pipe(task, head)(*given, **options)


def test_a_task_that_has_no_default_model_says_so() -> None:
    with pytest.raises(InvalidOptionError, match=r"fill-mask needs a model, got none.*'distilbert/distilroberta-base'"):
        pyllm.pipeline("fill-mask")
    with pytest.raises(InvalidOptionError, match=r"translation_en_to_de needs a model.*'google-t5/t5-base'"):
        pyllm.pipeline("translation_en_to_de")
    with pytest.raises(InvalidOptionError, match=r"embeddings needs a model.*a Hub id$"):
        pyllm.pipeline("embeddings")


def test_the_tokenizer_may_be_named_but_is_the_models_own(load: Load) -> None:
    model = load("bert", "masked-lm")
    for own in (model.tokenizer, model.folder, str(model.folder)):
        assert pyllm.pipeline("fill-mask", model, tokenizer=own).tokenizer is model.tokenizer
    with pytest.raises(InvalidOptionError, match="a model's tokenizer lies in its folder, got tokenizer='other'"):
        pyllm.pipeline("fill-mask", model, tokenizer="other")


def test_folders_are_loaded_with_loading_options(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "bert", "masked-lm")
    unmask = pyllm.pipeline("fill-mask", folder, device="reference", top_k=1)
    assert unmask.model.device == "reference"
    assert len(unmask("the [MASK]")) == 1


def test_old_names_of_options_mean_what_they_meant(pipe: Callable[..., Any]) -> None:
    ner, text = pipe("ner", "token-classification"), "He lived in London and worked in Paris"
    assert ner(text, grouped_entities=True) == ner(text, aggregation_strategy="simple")
    firsts = ner(text, grouped_entities=True, ignore_subwords=True)
    assert firsts == ner(text, aggregation_strategy="first")
    assert ner(text, grouped_entities=False) == ner(text)
    with pytest.raises(InvalidOptionError, match="takes the place of grouped_entities"):
        ner(text, grouped_entities=True, aggregation_strategy="max")
    nli = pipe("zero-shot-classification", "nli")
    assert nli("a cat", ["x", "y"], multi_class=True) == nli("a cat", ["x", "y"], multi_label=True)


def test_loading_options_of_transformers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "bert", "sentiment")
    idle = {"device": -1, "framework": "pt", "device_map": "auto", "trust_remote_code": False, "use_fast": True}
    classify = pyllm.pipeline("sentiment-analysis", folder, **idle)
    assert (classify.model.device, classify.model.dtype) == ("cpu", "float32")
    wrong = {"trust_remote_code": True, "model_kwargs": {"torch_dtype": "auto"}}
    with pytest.raises(InvalidOptionError, match=r"no code of a checkpoint is run.*model_kwargs=.*by name"):
        pyllm.pipeline("sentiment-analysis", folder, **wrong)
    if cuda_driver.missing() is not None:
        with pytest.raises(DeviceError, match="use device='cpu'"):
            pyllm.pipeline("sentiment-analysis", folder, device=0)
    with pytest.raises(UnknownOptionError, match="did you mean 'dtype'"):
        pyllm.pipeline("sentiment-analysis", folder, torch_dtype="float32")


def test_types_and_devices_may_be_torchs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = write_folder(tmp_path, "bert", "sentiment")
    with pyllm.load(folder, dtype=torch.bfloat16, device=torch.device("cpu")) as model:
        assert (model.device, model.dtype) == ("cpu", "bfloat16")
    with pyllm.load(folder, dtype=torch.float16) as model:
        assert model.dtype == "float16"
    with pytest.raises(InvalidOptionError, match="dtype must be one of"):
        pyllm.load(folder, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")
def test_encoder_decoders_classify_like_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shutil.copytree(toy_folder("bart-mnli"), tmp_path, dirs_exist_ok=True)
    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u0120", *(chr(code) for code in range(33, 127)), "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BartTokenizer", "model_max_length": 40}')
    theirs = transformers.BartForSequenceClassification.from_pretrained(tmp_path).eval().float()
    classify = pyllm.pipeline("text-classification", tmp_path, dtype="float32", function_to_apply="none", top_k=None)
    pair = {"text": "It is so.", "text_pair": "Is it?"}
    for given, texts in (("A cat", ("A cat", None)), (pair, tuple(pair.values()))):
        ids = classify.tokenizer.encode(texts[0], pair=texts[1])
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0].numpy()
        found = {record["label"]: record["score"] for record in classify([given])[0]}
        wanted = {classify.model.config["id2label"][str(index)]: float(value) for index, value in enumerate(logits)}
        assert found == pytest.approx(wanted, abs=1e-4)
    scores = pyllm.pipeline("zero-shot-classification", classify.model)("A cat", ["a", "b"])["scores"]
    assert sum(scores) == pytest.approx(1)
