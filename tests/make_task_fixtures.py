"""Makes tests/fixtures/tasks/: what the encoder pipelines of transformers 4.53 answer on toy models (task_models.py).

    python tests/make_task_fixtures.py XQUAD_FOLDER      (transformers 4.53, torch; XQUAD_FOLDER has xquad.en.json)

transformers 4 is the last line with question-answering. Of XQuAD only the ids of questions are stored, with scores and
places. Results stand as they were returned, floats rounded to eight digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from task_cases import ANSWER_OPTIONS, CASES, QUESTIONS_STEP, masked, summary
from task_models import write_folder

FIXTURES = Path(__file__).parent / "fixtures" / "tasks"
FAMILIES = ("bert", "roberta")


def main() -> None:
    assert transformers.__version__.startswith("4.53"), transformers.__version__
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        _write(f"{family}.json", [record for key, cases in CASES.items() for record in _recorded(family, *key, cases)])
        _write(f"{family}-xquad.json", _answers(family, Path(sys.argv[1])))


def _recorded(family: str, task: str, head: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    records = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), family, head)
        for index, case in enumerate(cases):
            pipe = transformers.pipeline(task, model=folder, **case.get("defaults", {}))
            result = pipe(masked(case["inputs"], pipe.tokenizer.mask_token), **case.get("options", {}))
            records.append({"task": task, "head": head, "case": index, "result": summary(task, result)})
    return records


def _answers(family: str, xquad: Path) -> list[dict[str, Any]]:
    records = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), family, "question-answering")
        pipe = transformers.pipeline("question-answering", model=folder)
        for language in ("en", "zh"):
            data = json.loads((xquad / f"xquad.{language}.json").read_text("utf-8"))["data"]
            asked = [(qa, p["context"]) for each in data for p in each["paragraphs"] for qa in p["qas"]]
            for index, (qa, context) in enumerate(asked[::QUESTIONS_STEP]):
                choice = index % len(ANSWER_OPTIONS)
                found = pipe(question=qa["question"], context=context, **ANSWER_OPTIONS[choice])
                answers = found if isinstance(found, list) else [found]
                assert all(each["answer"] == context[each["start"] : each["end"]] for each in answers)
                places = [[each["score"], each["start"], each["end"]] for each in answers]
                records.append({"language": language, "id": qa["id"], "options": choice, "answers": places})
    return records


def _write(name: str, records: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(_plain(record), separators=(",", ":")) for record in records)
    (FIXTURES / name).write_text(f"[\n{lines}\n]\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return float(f"{value:.8g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
