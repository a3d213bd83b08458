"""`pyllm verify`: a model that agrees passes, damage shows in the right rows, references survive being written."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import data_path, toy_folder
from safetensors.numpy import load_file, save_file
from toy_pipelines import TOKENIZERS, write

from pyllm.cli import main
from pyllm.errors import InvalidOptionError
from pyllm.verify import Reference, read_reference, verify, write_reference
from pyllm.verify.measure import difference
from pyllm.verify.page import page
from pyllm.verify.reference import Case, Pass

KINDS = {"gpt2": "decoder", "t5": "encoder-decoder", "bert-qa": "encoder"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def damaged(name: str, tmp_path: Path, part: str, factor: float = 1.05) -> Path:
    """A copy of a toy whose first tensor with `part` in its name is multiplied."""
    folder = tmp_path / f"damaged-{name}"
    shutil.copytree(toy_folder(name), folder)
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(tensors) if part in key)
    tensors[key] = tensors[key] * np.float32(factor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def verdicts(report: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("gpt2", ["logits", "greedy", "beams"]),
        ("marian", ["logits", "encoder", "greedy", "beams"]),
        ("bart-mnli", ["logits"]),
        ("bert-classify", ["head", "hidden states"]),
        ("bert-base", ["hidden states"]),
    ],
)
def test_a_sound_model_agrees_with_its_records(name: str, checks: list[str]) -> None:
    report = verify(toy_folder(name), toy_folder(name))
    assert verdicts(report) == dict.fromkeys(checks, "pass")
    assert report.agrees
    assert report.verdict == "agrees"


@pytest.mark.parametrize(
    ("name", "part", "fails", "passes"),
    [
        ("gpt2", "h.1.mlp.c_proj.weight", ["logits", "beams"], []),
        ("t5", "decoder.block.1.layer.2", ["logits", "beams"], ["encoder"]),
        ("t5", "encoder.block.1.layer.1", ["logits", "encoder", "beams"], []),
        ("bert", "predictions.transform.dense.weight", ["head"], ["hidden states"]),
    ],
)
def test_damage_shows_where_it_is(name: str, part: str, fails: list[str], passes: list[str], tmp_path: Path) -> None:
    report = verify(damaged(name, tmp_path, part), toy_folder(name))
    found = verdicts(report)
    assert {check for check in fails if found[check] == "fail"} == set(fails)
    assert {check for check in passes if found[check] == "pass"} == set(passes)
    assert not report.agrees
    assert report.verdict.startswith("DIFFERS in ")


def test_the_command_writes_everything(tmp_path: Path) -> None:
    folder = damaged("bert", tmp_path, "predictions.transform.dense.weight")
    sound = run(str(toy_folder("bert")), "--reference", str(toy_folder("bert")))
    assert sound.exit_code == 0, sound.output
    assert re.search(r"head +pass +3/3 +max", sound.stdout)
    files = ("--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"))
    result = run(str(folder), "--reference", str(toy_folder("bert")), *files)
    assert result.exit_code == 1
    assert re.search(r"head +fail +0/3", result.stdout)
    assert "head, input 2, 7 tokens: max" in result.stdout
    assert "verdict    DIFFERS in head" in result.stdout
    found = json.loads((tmp_path / "a.json").read_text())
    head, hidden = found["checks"]
    assert (found["agrees"], head["verdict"], head["agreed"], hidden["verdict"]) == (False, "fail", 0, "pass")
    first = head["rows"][1]["difference"]
    assert len(first["by_row"]) == 7
    assert max(first["by_row"]) == first["max_abs"] > found["tolerance"]
    assert sum(first["histogram"]) == 7 * 131
    check_page((tmp_path / "a.html").read_text(), plots=6)
    loose = run(str(folder), "--reference", str(toy_folder("bert")), "--tolerance", "1")
    assert loose.exit_code == 0


class Tags(HTMLParser):
    """Names of the open tags, and what of them loads something else."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [name for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "rect", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open and self.open[-1] == tag:
            self.open.pop()


def check_page(text: str, plots: int) -> None:
    """It is well-formed, needs nothing else, knows dark mode, and has its plots."""
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.loads == []
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in re.sub("<style>.*</style>", "", text, flags=re.DOTALL).lower().split()
    assert tags.count["svg"] == plots
    assert tags.count["rect"] > 0 < tags.count["polyline"]


def test_differences_are_those_of_the_arrays() -> None:
    random = np.random.default_rng(3)
    expected = random.standard_normal((7, 40)).astype(np.float32)
    found = expected + random.normal(scale=1e-3, size=expected.shape).astype(np.float32)
    found[2] = found[2][::-1]
    apart = difference(found, expected)
    size = np.abs(found.astype(np.float64) - expected)
    np.testing.assert_allclose(apart.by_row, size.max(axis=1))
    assert apart.max_abs == size.max() == max(apart.by_row)
    assert apart.mean_abs == pytest.approx(size.mean())
    assert apart.deviation == pytest.approx(expected.astype(np.float64).std())
    assert apart.top1 == np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) < 1
    assert 0.5 < apart.top5 < 1
    assert sum(apart.histogram) == found.size
    assert apart.histogram[-1] == (size > 10).sum()
    assert len(apart.points) == found.size  # fewer than are shown
    assert difference(expected, expected).histogram[0] == found.size


def test_names_are_escaped_and_what_is_no_number_is_drawn() -> None:
    wrong = np.full((3, 5), np.nan, np.float32)
    apart = difference(wrong, np.ones((3, 5), np.float32))
    assert np.isnan(apart.max_abs)
    report = verify(toy_folder("bert-base"), toy_folder("bert-base"))
    object.__setattr__(report, "model", "<script>x</script>")
    row = report.checks[0].rows[0]
    object.__setattr__(row, "difference", apart)
    text = page(report)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", KINDS)
def test_references_are_what_was_written(name: str, tmp_path: Path) -> None:
    reference = read_reference(toy_folder(name), KINDS[name])
    told = Reference(reference.origin, reference.kind, [("a \u00e9", [1, 2])], reference.passes, reference.cases)
    write_reference(tmp_path, told)
    again = read_reference(tmp_path, KINDS[name])
    assert again.texts == told.texts
    assert again.cases == told.cases
    for one, other in zip(again.passes, told.passes, strict=True):
        assert one.inputs == other.inputs
        assert list(one.outputs) == list(other.outputs)
        for output in one.outputs:
            np.testing.assert_array_equal(one.outputs[output], other.outputs[output])


def test_a_json_file_is_a_reference_too(tmp_path: Path) -> None:
    reference = read_reference(toy_folder("gpt2"), "decoder")
    first = reference.passes[1]
    content: dict[str, Any] = {
        "outputs": [{"prompt": first.inputs["prompt"], "logits": first.outputs["logits"].tolist()}],
        "cases": [{"prompt": case.prompt, "options": case.options, "token_ids": case.token_ids, "scores": case.scores}
                  for case in reference.cases[:1]],
    }  # fmt: skip
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(content))
    assert verdicts(verify(toy_folder("gpt2"), path)) == {"logits": "pass", "greedy": "pass"}


def test_bfloat16_is_judged_by_its_logits() -> None:
    report = verify(toy_folder("llama"), toy_folder("llama"), dtype="bfloat16")
    assert report.agrees, report.table()
    beams = report.checks[-1]
    assert 0 < beams.agreed < len(beams.rows)
    assert "not judged in bfloat16" in beams.note


def test_near_ties_agree_and_say_so() -> None:
    reference = read_reference(toy_folder("gpt2"), "decoder")
    case = next(each for each in reference.cases if not each.scores)
    other = [[*case.token_ids[0][:5], (case.token_ids[0][5] + 1) % 131]]
    changed = Case(case.name, case.prompt, {**case.options, "max_new_tokens": 6}, other)
    told = Reference("here", "decoder", cases=[changed])
    strict, loose = (verify(toy_folder("gpt2"), told, tolerance=limit) for limit in (1e-4, 50.0))
    assert verdicts(strict) == {"greedy": "fail"}
    assert "token 5 is" in strict.checks[0].rows[0].detail
    assert verdicts(loose) == {"greedy": "pass"}
    assert loose.checks[0].note == "1 near tie"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="is not there"):
        verify(toy_folder("gpt2"), tmp_path / "nothing")
    with pytest.raises(InvalidOptionError, match="it has none"):
        verify(toy_folder("gpt2"), tmp_path)
    with pytest.raises(InvalidOptionError, match="recorded outputs of encoder-decoders"):
        verify(toy_folder("t5"), toy_folder("gpt2"))
    wide = [Pass({"prompt": [1, 2]}, {"logits": np.zeros((2, 7), np.float32)})]
    report = verify(toy_folder("gpt2"), Reference("here", "decoder", passes=wide))
    assert report.checks[0].rows[0].detail == "shape [2, 7] expected, got [2, 131]"
    assert not verify(toy_folder("gpt2"), Reference("here", "decoder")).agrees  # nothing is no agreement


def test_tokens_are_compared(tmp_path: Path) -> None:
    folder = write("marian", tmp_path, data_path(TOKENIZERS["marian"][0]))
    from pyllm.tokenization import load_tokenizer

    tokenizer = load_tokenizer(folder, json.loads((folder / "config.json").read_text()))
    good, bad = tokenizer.encode("Hello world"), tokenizer.encode("Hello moon")
    report = verify(folder, Reference("here", "encoder-decoder", [("Hello world", good), ("Hello world", bad)]))
    assert [row.verdict for row in report.checks[0].rows] == ["pass", "fail"]
    assert "token 1 and on: [" in report.checks[0].rows[1].detail


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "t5", "bart-mnli", "bert", "bert-qa"])
def test_live(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    report = verify(toy_folder(name), save=tmp_path)
    assert report.reference.startswith("transformers ")
    assert report.agrees, report.table()
    assert verdicts(report)["tokenization"] == "skipped"
    assert verify(toy_folder(name), tmp_path).agrees


@pytest.mark.filterwarnings("ignore")
def test_live_with_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = write("marian", tmp_path, data_path(TOKENIZERS["marian"][0]))
    report = verify(folder, texts=["One more."])
    assert report.agrees, report.table()
    assert verdicts(report)["tokenization"] == "pass"
    assert len(report.checks[0].rows) > 20
