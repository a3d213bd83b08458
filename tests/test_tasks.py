"""The pipelines of encoders: what transformers 4 answered (fixtures/tasks), calls, streams, limits and errors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, data_path
from task_cases import ANSWER_OPTIONS, CASES, LONG, masked, summary
from task_models import write_folder

import pyllm
from pyllm.errors import (
    ContextLengthError,
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
