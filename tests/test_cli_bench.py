"""`pyllm bench`: what it reports for the kinds of models, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyllm.cli import main

FIXTURES = Path(__file__).parent / "fixtures"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


@pytest.mark.parametrize(
    ("fixture", "kind"), [("llama", "decoder"), ("marian", "encoder-decoder"), ("bert", "encoder")]
)
def test_reports_figures_for_every_kind_and_batch(fixture: str, kind: str) -> None:
    result = run(str(FIXTURES / fixture), "--prompt", "5", "--new", "3", "--batch", "1", "--batch", "2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kind"] == kind
    assert report["weight_bytes"] > 0
    assert [figures["batch"] for figures in report["measured"]] == [1, 2]
    for figures in report["measured"]:
        assert all(value > 0 for name, value in figures.items() if name != "of_bandwidth"), figures


def test_text_has_a_row_a_batch_and_ops_by_share() -> None:
    result = run("default", "--prompt", "4", "--new", "3", "--batch", "1", "--profile")
    assert result.exit_code == 0, result.output
    measured, profile = result.stdout.split("\n\n")
    assert "new tokens per second" in measured
    lines = profile.strip().splitlines()
    assert lines[0].split()[:4] == ["op", "program", "calls", "ms"]
    assert any(line.split()[0] == "layer*.qkv" for line in lines)
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1 + 0.05 * len(shares))


def test_a_prompt_past_the_context_is_one_line() -> None:
    result = run("default", "--prompt", "100000")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [generate]")
    assert len(result.stderr.splitlines()) == 1


def test_a_device_without_times_is_told() -> None:
    result = run(str(FIXTURES / "llama"), "--device", "reference", "--prompt", "2", "--new", "2", "--profile")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [bench] --profile needs device cpu or cuda")
