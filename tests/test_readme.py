"""README.md: its Python runs, on small models in place of the Hub's, and every option and file it names is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, data_path, minilm_folder
from task_models import write_folder
from toy_pipelines import TOKENIZERS, write

import pyllm
from pyllm.cli import COMMANDS, main
from pyllm.decode.option_names import ALIASES, CHECKS
from pyllm.pipelines import TASKS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OTHERS = {"output_attentions", "output_hidden_states", "src_lang", "tgt_lang", "target_prefix"}  # taken before a search


@pytest.mark.filterwarnings("ignore")
def test_the_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marian = write("marian", tmp_path, data_path(TOKENIZERS["marian"][0]))
    stand_ins = {
        "gpt2": pyllm.default_model(),
        "folder-or-hub-id": pyllm.default_model(),
        "Helsinki-NLP/opus-mt-en-de": marian,
        "deepset/roberta-base-squad2": write_folder(tmp_path / "qa", "roberta", "question-answering"),
        "sentence-transformers/all-MiniLM-L6-v2": minilm_folder(),
    }
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        code = block
        for name, folder in stand_ins.items():
            code = re.sub(f"([\"']){re.escape(name)}\\1", lambda _, folder=folder: repr(str(folder)), code)
        exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("generated_text") == 3
    assert {"reader", "translator", "mt", "bert"} <= names.keys()


def test_options_and_tasks_are_known() -> None:
    listed = README.partition("Options carry Hugging Face's names")[2].partition("A misspelt option")[0]
    names = set(re.findall(r"`([a-z_]+)(?:=k)?`", listed))
    assert len(names) > 40
    assert names <= {*CHECKS, *ALIASES, *OTHERS}
    tasks = README.partition("Tasks of `pipeline(task, model=...)`: ")[2].partition("Lists, generators")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", tasks)) <= set(TASKS)


def test_commands_take_what_is_shown() -> None:
    shown = re.findall(r"^pyllm (\w+)(.*?)(?:  .*)?$", README, re.MULTILINE)
    assert {name for name, _ in shown} <= set(COMMANDS)
    for name, rest in shown:
        help_text = CliRunner().invoke(main, [name, "--help"]).stdout
        assert all(option in help_text for option in re.findall(r"--[\w-]+", rest))


def test_what_the_package_brings_is_listed() -> None:
    listed = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = listed.partition("\ndependencies = [")[2].partition("\n]")[0]
    needed = re.findall(r'"([A-Za-z0-9_-]+)', listed)
    small = README.partition("* **Small**")[2].partition("* **Faithful**")[0].lower()
    assert "numpy" in needed
    assert all(name in small for name in needed)
