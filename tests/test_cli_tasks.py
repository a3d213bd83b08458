"""The commands for tasks: what they read, what they print, one line a text, JSON, files, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import data_path, minilm_folder, toy_folder

import pyllm
from pyllm.cli import COMMANDS, main
from pyllm.cli.chat import Conversation

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def test_every_command_has_help() -> None:
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0, result.output
        assert "Usage: main" in result.stdout


def test_score_prints_perplexity_and_tokens(tmp_path: Path) -> None:
    with pyllm.load(pyllm.default_model()) as model:
        expected = model.score(["The prince looked at her.", "xq zz"])
    result = run("score", "default", "The prince looked at her.", "xq zz", "--batch-size", "1")
    assert result.exit_code == 0, result.stderr
    found = [line.split("\t") for line in result.stdout.splitlines()]
    assert [float(fields[0]) for fields in found] == pytest.approx([s.perplexity for s in expected], abs=1e-3)
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"text": "The prince looked at her.", "id": 7}\n\n{"text": "xq zz", "id": 8}\n')
    records = [json.loads(line) for line in run("score", "default", "-f", str(lines), "--json").stdout.splitlines()]
    assert [record["id"] for record in records] == [7, 8]
    logprobs = [token["logprob"] for token in records[1]["result"]["token_logprobs"]]
    assert logprobs[0] is None
    assert logprobs[1:] == pytest.approx(expected[1].logprobs[1:].tolist(), abs=1e-5)


def test_generate_continues_the_lines_of_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("The prince\nThe old man\n")
    options = ("--max-new-tokens", "4", "--temperature", "0")
    result = run("generate", "default", "--file", str(lines), *options)
    with pyllm.load(pyllm.default_model()) as model:
        texts = [model.generate(p, max_new_tokens=4, do_sample=False).text for p in ("The prince", "The old man")]
    assert result.stdout == f"The prince{texts[0]}\nThe old man{texts[1]}\n"
    for given in (("-f", "-"), ()):
        found = run("generate", "default", *given, *options, stdin="The prince\n")
        assert found.stdout == f"The prince{texts[0]}\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("score", "default", "-f", "no-such-file.txt"), None, "no-such-file.txt"),
        (("score", "default"), '{"txt": "a"}\n', "line 1] needs 'text' as text"),
        (("score", "default"), '{"text": "a"}\nnot json\n', "line 2 must be a JSON object"),
        (("generate", "default", "a", "-f", "b"), None, "needs either PROMPT"),
        (("embed", "default", "a"), None, "needs an encoder (BERT and so on), default is of kind decoder"),
        (("translate", "default", "a"), None, "translation"),
        (("classify", "default", "a", "--tokens", "--labels", "x,y"), None, "--tokens excludes --labels"),
        (("answer", "default", "a?", "--context", "b", "--context-file", "c"), None, "drop one"),
        (("inspect", "no/such/model"), None, "error: ["),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], stdin: str | None, message: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_inspect_tells_family_memory_program_and_problems(tmp_path: Path) -> None:
    report = json.loads(run("inspect", "default", "--json").stdout)
    assert report["kind"] == "decoder"
    assert report["problems"] == "none"
    assert report["program"].startswith(f"{report['family']}: ")
    with pyllm.load(pyllm.default_model(), dtype="float32") as model:
        megabytes = float(report["weights"][0].split(": ")[1].split()[0])
        held = model.memory_report()["weights"]
    assert megabytes * 1e6 <= held <= megabytes * 1e6 + (2 << 20) + 2e5  # whole huge pages, panels padded to 64 rows
    folder = tmp_path / "broken"
    shutil.copytree(toy_folder("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_head": 5}))
    result = run("inspect", str(folder))
    assert result.exit_code == 1
    assert "n_embd must be a multiple of n_head, got 48 and 5" in result.stdout


def test_embed_writes_vectors_as_lines_or_an_array(tmp_path: Path) -> None:
    folder = str(minilm_folder())
    with pyllm.load(folder) as model:
        expected = model.embed(["a cat", "a dog"])
    lines = run("embed", folder, "a cat", "a dog").stdout.splitlines()
    np.testing.assert_allclose([[float(x) for x in line.split()] for line in lines], expected, rtol=0, atol=1e-5)
    out = tmp_path / "vectors"
    assert run("embed", folder, "a cat", "a dog", "-o", str(out), "--batch-size", "1").exit_code == 0
    np.testing.assert_array_equal(np.load(out), expected)


@pytest.fixture
def toy_bert(tmp_path: Path) -> str:
    """A BERT with a real vocabulary's first tokens and random weights, as large as the toy model's table."""
    folder = tmp_path / "bert"
    shutil.copytree(toy_folder("bert-qa"), folder)
    words = data_path("tokenizers/bert-base-uncased/vocab.txt").read_text("utf-8").splitlines()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kept = [*special, *[w for w in words if w.isalpha() and w.isascii()][: size - len(special)]]
    (folder / "vocab.txt").write_text("\n".join(kept) + "\n", "utf-8")
    return str(folder)


def test_answer_takes_a_question_and_a_context(toy_bert: str) -> None:
    result = run("answer", toy_bert, "what is it", "--context", "the of and to in", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)["result"]
    assert record["answer"] == "the of and to in"[record["start"] : record["end"]]


def test_a_conversation_grows_and_can_be_taken_back() -> None:
    with pyllm.load(pyllm.default_model()) as model:
        talk = Conversation(model, {"max_new_tokens": 5, "do_sample": False}, "Be brief.", TEMPLATE)
        talk.answer("Who is he?")
        assert [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
        expected = model.generate("system: Be brief.\nuser: Who is he?\nassistant:", max_new_tokens=5, do_sample=False)
        assert talk.messages[-1]["content"] == expected.text
        assert talk.take_back() == "Who is he?"
        assert [m["role"] for m in talk.messages] == ["system"]
        assert talk.take_back() is None


def test_chat_reads_several_lines_and_commands(tmp_path: Path) -> None:
    template, saved = tmp_path / "chat.jinja", tmp_path / "talk.json"
    template.write_text(TEMPLATE)
    said = f'Who \\\nis he?\n/history\n/save {saved}\n"""\na\n\nb\n"""\n/nonsense\n/exit\n'
    options = ("--template", str(template), "--max-new-tokens", "3", "--temperature", "0")
    result = run("chat", "default", *options, stdin=said)
    assert result.exit_code == 0, result.stderr
    assert "user: Who \nis he?" in result.stdout
    assert "/retry" in result.stderr  # the help, after the unknown command
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant"]
    refused = run("chat", "default", stdin="hello\n")
    assert refused.exit_code == 1
    assert "template" in refused.stderr
