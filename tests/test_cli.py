"""The `pyllm` command: text and JSON output, exit codes, and that nothing but the text reaches stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import toy_folder
from quantized_layouts import write_quantized
from test_quantized_checkpoints import LAYOUTS

import pyllm
from pyllm.cli import main


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


GENERATE = ("generate", "default", "The prince", "--max-new-tokens", "6")


def test_text_goes_to_stdout_and_numbers_to_stderr() -> None:
    result = run(*GENERATE, "--temperature", "0")
    assert result.exit_code == 0, result.stderr
    expected = pyllm.load(pyllm.default_model()).generate("The prince", max_new_tokens=6, do_sample=False)
    assert result.stdout == f"The prince{expected.text}\n"
    assert "tokens/s" in result.stderr
    assert "finish: length" in result.stderr
    continuation = run(*GENERATE, "--temperature", "0", "--no-prompt")
    assert continuation.stdout == f"{expected.text}\n"


def test_json_holds_everything_and_a_seed_repeats_it() -> None:
    first = json.loads(run(*GENERATE, "--seed", "5", "--json").stdout)
    again = json.loads(run(*GENERATE, "--seed", "5", "--json", "--threads", "1").stdout)
    assert first["sequences"] == again["sequences"]
    assert first["seed"] == 5
    assert first["new_tokens"] == 6
    assert first["prompt"] == "The prince"
    assert first["sequences"][0]["finish_reason"] == "length"


def test_beams_and_several_sequences_come_at_the_end() -> None:
    settings = ("--num-beams", "3", "--set", "num_return_sequences=2", "--set", "do_sample=false")
    result = run(*GENERATE, *settings)
    assert result.stdout.count("The prince") == 2
    assert "\n---\n" in result.stdout
    report = json.loads(run(*GENERATE, *settings, "--json").stdout)
    assert [s["score"] < 0 for s in report["sequences"]] == [True, True]


def test_loading_options() -> None:
    settings = ("--quantization", "int8", "--kv-cache", "int8", "--dtype", "float16", "--temperature", "0")
    result = run(*GENERATE, *settings)
    with pyllm.load(pyllm.default_model(), dtype="float16", quantization="int8", kv_cache="int8") as model:
        expected = model.generate("The prince", max_new_tokens=6, do_sample=False)
    assert result.stdout == f"The prince{expected.text}\n"
    refused = run(*GENERATE, "--quantization", "int5", "--kv-cache", "int4")
    assert refused.exit_code == 1
    assert "quantization must be None or one of int8, int8-fast, int4, int4-g128, got 'int5'" in refused.stderr
    assert "kv_cache must be None or one of float32, bfloat16, float16, int8, got 'int4'" in refused.stderr


def test_inspect_tells_how_weights_are_quantised(tmp_path: Path) -> None:
    layout, config, _ = LAYOUTS["gptq"]
    _, folder = write_quantized(toy_folder("gpt2"), tmp_path, layout, config)
    lines = run("inspect", str(folder), "--no-program").stdout.splitlines()
    assert "quantised           gptq, 4 bit, groups of 32: packed as they are, in int4 (8 matrices)" in lines
    assert any(line.startswith("packed weights") for line in lines)
    plain = run("inspect", "default", "--no-program").stdout
    assert "quantised" not in plain
    assert [form in plain for form in ("int8: ", "int4: ")] == [True, True]


def test_the_prompt_may_come_from_stdin() -> None:
    result = run("generate", "default", "-", "--max-new-tokens", "3", "--seed", "1", stdin="Once more\n")
    assert result.stdout.startswith("Once more")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("generate", "no/such/folder/here", "x"), 1, "error: ["),
        ((*GENERATE, "--set", "temprature=1"), 1, "did you mean 'temperature'"),
        ((*GENERATE, "--set", "nothing"), 1, "NAME=VALUE"),
        ((*GENERATE, "--set", "top_k=" + "9" * 5000), 1, "top_k must be an integer"),
        ((*GENERATE, "--set", "top_k=" + "[" * 100_000), 1, "top_k must be an integer"),
        ((*GENERATE, "--device", "cuda:9999"), 1, "cuda"),
        (("generate",), 2, "Missing argument"),
        (("--no-such-flag",), 2, "No such option"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert code == 2 or len(result.stderr.strip().splitlines()) == 1


def test_control_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pyllm, "load", interrupted)
    assert run(*GENERATE).exit_code == 130


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT between processes")
def test_control_c_in_the_middle_of_a_text(tmp_path: Path) -> None:
    long = ("--max-new-tokens", "400", "--set", "eos_token_id=null", "--device", "reference")
    command = [sys.executable, "-u", "-m", "pyllm", "generate", "default", "The prince", *long]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(20).startswith("The prince")  # ten characters of prompt, ten of text
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_reaches_any_output_encoding(encoding: str, tmp_path: Path) -> None:
    prompt = "Ünï Привет 😀"
    command = [sys.executable, "-m", "pyllm", "generate", "default", prompt, "--max-new-tokens", "3", "--seed", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for flags in ([], ["--json"]):
        done = subprocess.run([*command, *flags], capture_output=True, cwd=tmp_path, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        if flags:
            assert json.loads(done.stdout.decode("utf-8" if encoding == "ascii" else encoding))["prompt"] == prompt


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [(*GENERATE,), (*GENERATE, "--json"), ("doctor",)])
def test_an_output_that_cannot_be_written_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pyllm", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output could not be written")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_pipes(tmp_path: Path) -> None:
    command = f"{sys.executable} -m pyllm generate default - --max-new-tokens 3"
    done = subprocess.run(f"{command} <&-", shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr.partition("]")[0]) == (1, "error: [generate")
    command = f"{sys.executable} -m pyllm generate default 'a\n' --max-new-tokens 300 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "Traceback" not in done.stderr


def test_doctor() -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["pyllm"]["version"] == pyllm.__version__
    assert report["kernels"]["used"] in report["kernels"]["instruction sets here"]
    assert report["kernels"]["threads"] >= 1
    assert run("doctor").stdout.startswith("pyllm\n  version")


def test_doctor_names_a_malformed_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_NUM_THREADS", "many")
    result = run("doctor")
    assert result.exit_code == 1
    assert "PYLLM_NUM_THREADS" in result.stdout


def test_python_m_pyllm_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyllm", *GENERATE, "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The prince")
    assert "\x1b" not in done.stdout + done.stderr
