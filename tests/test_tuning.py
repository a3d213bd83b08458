"""Measured thresholds: kept by machine, used by models, never trusted when damaged, and without effect on results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import toy_folder

import pyllm
from pyllm.cli import main
from pyllm.devices import tuning
from pyllm.devices.tuning import NEVER, Thresholds
from pyllm.errors import InvalidOptionError

pytestmark = pytest.mark.cpu_only("its thresholds")


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_TUNING", str(tmp_path / "cache" / "tuning.json"))
    return tmp_path / "cache" / "tuning.json"


def test_rows_are_kept_by_instruction_set_and_threads(table: Path) -> None:
    assert tuning.kept("avx2", 2) is None
    tuning.keep("avx2", 2, Thresholds(8, 64))
    tuning.keep("avx2", 4, Thresholds(16, NEVER))
    assert tuning.kept("avx2", 2) == Thresholds(8, 64)
    assert tuning.kept("avx2", 4) == Thresholds(16, NEVER)
    assert tuning.kept("scalar", 2) is None
    assert [path.name for path in table.parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("content", ["", "[1]", "{", "null", "deep", "zero", "text", "much"])
def test_a_damaged_table_is_not_used_and_can_be_replaced(table: Path, content: str) -> None:
    rows = {
        "zero": {"repeat_rows": 0, "own_rows": 1},
        "text": {"repeat_rows": "x"},
        "much": {"repeat_rows": 25, "own_rows": 1},
    }
    if content == "deep":
        content = "[" * 100_000
    elif content in rows:
        content = json.dumps({tuning.key("avx2", 2): rows[content]})
    table.parent.mkdir()
    table.write_text(content)
    assert tuning.kept("avx2", 2) is None
    tuning.keep("avx2", 2, Thresholds(8, 64))
    assert tuning.kept("avx2", 2) == Thresholds(8, 64)


def test_thresholds_are_those_of_the_faster_way() -> None:
    """A machine on which sharing pays from 16 rows on, and whole rows from 128 a thread."""
    current = (0, 0)
    clock = {8: (1, 2), 16: (2, 1), 24: (2, 1)}

    def set_sharing(*rows: int) -> None:
        nonlocal current
        current = rows

    def run(batch: object, cache: object) -> None:
        rows = len(batch.ids)  # type: ignore[attr-defined]
        if rows in clock:
            seconds = clock[rows][current[0] == 1]
        else:
            seconds = 1 if (current[1] == 1) == (rows >= 256) else 2
        end = tuning.time.perf_counter() + seconds * 2e-3
        while tuning.time.perf_counter() < end:
            pass

    with pyllm.load(toy_folder("llama")) as model:
        found = tuning.measure(run, model.runner.new_cache, set_sharing, num_threads=2, max_rows=4096)
    assert found == Thresholds(8, 128)
    assert current == (8, 128)


def test_results_do_not_depend_on_thresholds() -> None:
    with pyllm.load(toy_folder("llama"), num_threads=2) as model:
        ids = [int(i) for i in np.random.default_rng(0).integers(3, 130, 40)]
        expected = model.logits(ids)
        for rows in ((1, NEVER), (24, 1), (1, 1)):
            model.runner.set_sharing(*rows)
            assert np.array_equal(model.logits(ids), expected)
        for wrong in ((0, 1), (25, 1), (1, 0)):
            with pytest.raises(InvalidOptionError, match="sharing"):
                model.runner.set_sharing(*wrong)


def test_the_command_measures_and_models_use_what_it_kept(table: Path) -> None:
    result = CliRunner().invoke(main, ["tune", "default", "--threads", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("inputs of matmuls are repeated up to ")
    (row,) = json.loads(table.read_text()).values()
    assert row["repeat_rows"] in (4, 8, 16, 24)
    with pyllm.load(pyllm.default_model(), num_threads=2) as model:
        assert tuning.kept(model.runner.isa, 2) == Thresholds(**row)
    refused = CliRunner().invoke(main, ["tune", str(toy_folder("bert"))])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: [tune] needs a decoder")
