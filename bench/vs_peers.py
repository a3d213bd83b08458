"""pyllm beside llama.cpp, OpenVINO, CTranslate2, transformers and ONNX Runtime on this machine: one table.

    python bench/vs_peers.py run --harness DIR --peers DIR --models DIR --ceilings BINARY --out FILE [--only REGEX]
    python bench/vs_peers.py table results.jsonl

--harness   folder with the drivers of the peers (drive_llamacpp.py ...) and common.py, which says what a case is
--peers     folder with their environments: venv-peers, venv-openvino, venv-ort, llama/build/bin
--models    folder of models with random weights of real shapes, in the form each engine wants
--ceilings  build/bench/bench_ceilings: the machine's limits, measured first, in the same run
--only      engine/model/dtype/threads to run; lines are appended, the last one of a configuration counts

One process a configuration, one after the other, on an otherwise idle machine: each line says how many cores others
used meanwhile. The best peer of a case is the fastest at any precision of the same or more bits, on one or two threads.
The limit is the larger of weight bytes / read bandwidth at that footprint and operations / peak of the instruction.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

LLM = "prefill512,decode_p32,decode_b8,decode_b32"
BITS = {"float32": 32, "f32": 32, "bfloat16": 16, "bf16": 16, "float16": 16, "f16": 16}
BITS |= {"int8": 8, "int8-fast": 8, "int8_float32": 8, "Q8_0": 8, "int4": 4, "int4-g128": 4, "Q4_0": 4, "Q4_K_M": 4}
# bytes a weight; int4: 4 bits and a 16-bit scale every 32
BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.0,
    "int8-fast": 1.0,
    "int4": 0.5625,
    "int4-g128": 0.515625,
}

# model -> (weights of the matmuls without the head, of the head)
WEIGHTS = {
    "gpt2-124m": (12 * 12 * 768 * 768, 50257 * 768),
    "qwen2-0.5b": (24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864), 151936 * 896),
    "llama-1b": (22 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 5632), 32000 * 2048),
    "bert-base": (12 * 12 * 768 * 768, 0),
}
# (model, case, precisions of pyllm): the rows of the table
ROWS: list[tuple[str, str, list[str]]] = [
    ("gpt2-124m", "decode_p32", ["float32", "bfloat16", "int8", "int4"]),
    ("gpt2-124m", "prefill512", ["float32", "bfloat16", "int8", "int8-fast", "int4"]),
    ("gpt2-124m", "decode_b8", ["bfloat16", "int8", "int4"]),
    ("gpt2-124m", "decode_b32", ["bfloat16", "int8", "int4"]),
    ("gpt2-124m", "beam4", ["float32", "bfloat16", "int8"]),
    ("qwen2-0.5b", "decode_p32", ["bfloat16", "int8", "int4"]),
    ("qwen2-0.5b", "decode_p1024", ["bfloat16", "int8", "int4"]),
    ("qwen2-0.5b", "prefill512", ["bfloat16", "int8", "int8-fast", "int4"]),
    ("qwen2-0.5b", "decode_b32", ["bfloat16", "int8", "int4"]),
    ("llama-1b", "decode_p32", ["int8", "int4"]),
    ("llama-1b", "prefill512", ["int8", "int8-fast", "int4"]),
    ("bert-base", "enc_b1_128", ["float32", "bfloat16", "int8", "int8-fast"]),
    ("bert-base", "enc_b32_128", ["float32", "bfloat16", "int8", "int8-fast"]),
    ("marian-base", "mt_b1_greedy", ["float32", "bfloat16", "int8"]),
    ("marian-base", "mt_b1_beam4", ["float32", "bfloat16", "int8"]),
    ("marian-base", "mt_b32_beam4", ["float32", "bfloat16", "int8"]),
]
# (driver, python or None for ours, model, dtypes, threads, cases, repeats)
T = "mt_b1_greedy,mt_b1_beam4,mt_b32_beam4"
E = "enc_b1_128,enc_b32_128"
Q = "prefill512,decode_p32,decode_p1024,decode_b32"
L = "prefill512,decode_p32"
PEERS: list[tuple[str, str, str, list[str], list[int], str, int]] = [
    ("llamacpp", "venv-peers", "gpt2-124m", ["f32", "bf16", "Q8_0", "Q4_0"], [2], LLM, 5),
    ("ctranslate2", "venv-peers", "gpt2-124m", ["float32", "int8_float32"], [2, 1], LLM + ",beam4", 3),
    ("transformers", "venv-peers", "gpt2-124m", ["float32", "bfloat16"], [2], LLM + ",beam4", 3),
    ("openvino", "venv-openvino", "gpt2-124m", ["f32", "bf16", "int8", "int4"], [2], LLM + ",beam4", 3),
    ("llamacpp", "venv-peers", "qwen2-0.5b", ["bf16", "Q8_0", "Q4_0"], [2], Q, 3),
    ("ctranslate2", "venv-peers", "qwen2-0.5b", ["int8_float32"], [2, 1], Q, 3),
    ("transformers", "venv-peers", "qwen2-0.5b", ["bfloat16"], [2], Q, 3),
    ("openvino", "venv-openvino", "qwen2-0.5b", ["bf16", "int8", "int4"], [2], Q, 3),
    ("llamacpp", "venv-peers", "llama-1b", ["Q8_0", "Q4_0"], [2], L, 3),
    ("ctranslate2", "venv-peers", "llama-1b", ["int8_float32"], [2, 1], L, 3),
    ("openvino", "venv-openvino", "llama-1b", ["int8", "int4"], [2], L, 3),
    ("ctranslate2", "venv-peers", "bert-base", ["float32", "int8_float32"], [2], E, 5),
    ("transformers", "venv-peers", "bert-base", ["float32", "bfloat16"], [2], E, 5),
    ("ort", "venv-ort", "bert-base", ["float32", "int8"], [2], E, 5),
    ("openvino", "venv-openvino", "bert-base", ["f32", "bf16"], [2], E, 5),
    ("ctranslate2", "venv-peers", "marian-base", ["float32", "int8_float32"], [2, 1], T, 3),
    ("transformers", "venv-peers", "marian-base", ["float32", "bfloat16"], [2], T, 3),
]
OURS = {"gpt2-124m": 5, "qwen2-0.5b": 3, "llama-1b": 3, "bert-base": 5, "marian-base": 5}  # model -> repeats


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command()
@click.option("--harness", type=Path, required=True)
@click.option("--peers", type=Path, required=True)
@click.option("--models", type=Path, required=True)
@click.option("--ceilings", type=Path, required=True)
@click.option("--out", type=Path, required=True)
@click.option("--only", default="", help="Regular expression of engine/model/dtype/threads.")
def run(harness: Path, peers: Path, models: Path, ceilings: Path, out: Path, only: str) -> None:
    """Measures the ceilings, then every configuration that --only matches; appends JSON lines to --out."""
    environment = os.environ | {
        "HARNESS": str(harness.resolve()),
        "MODELS": str(models.resolve()),
        "LLAMA_BIN": str((peers / "llama/build/bin").resolve()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with out.open("a") as lines:
        subprocess.run([ceilings.resolve()], stdout=lines, check=True)
        for label, command, extra in _configurations(harness.resolve(), peers.resolve()):
            if not re.search(only, label):
                continue
            click.echo(label, err=True)
            done = subprocess.run(
                command, env=environment | extra, cwd=Path(__file__).parent, text=True, capture_output=True, check=False
            )
            lines.write("".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("{")))
            lines.flush()
            if done.returncode:
                click.echo(f"  failed: {done.stderr.strip()[-500:]}", err=True)


def _configurations(harness: Path, peers: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """(label, command, environment) of every process."""
    found = []
    for model, repeats in OURS.items():
        dtypes = dict.fromkeys(dtype for row in ROWS if row[0] == model for dtype in row[2])
        cases = ",".join(dict.fromkeys(row[1] for row in ROWS if row[0] == model))
        for dtype in dtypes:
            command = [sys.executable, "drive_pyllm.py", *_arguments(model, dtype, 2, cases, repeats)]
            found.append((f"pyllm/{model}/{dtype}/2", command, _tokens(model)))
    for driver, environment, model, dtypes_of_it, threads, cases, repeats in PEERS:
        python = str(peers / environment / "bin" / "python")
        for count in threads:
            for dtype in dtypes_of_it:
                arguments = _arguments(model, dtype, count, cases, repeats)
                command = [python, str(harness / f"drive_{driver}.py"), *arguments]
                found.append((f"{driver}/{model}/{dtype}/{count}", command, _tokens(model)))
    return found


def _arguments(model: str, dtype: str, threads: int, cases: str, repeats: int) -> list[str]:
    common = ["--model", model, "--dtype", dtype, "--threads", str(threads), "--cases", cases]
    return [*common, "--repeats", str(repeats), "--cap", "5"]


def _tokens(model: str) -> dict[str, str]:
    """New tokens of the decode cases: fewer where a token is slow."""
    return {"NEW": "128", "NEW_BATCH": "32"} if model == "gpt2-124m" else {"NEW": "48", "NEW_BATCH": "16"}


@main.command()
@click.argument("results", type=Path)
@click.option("--isa", default="", help="Of pyllm's lines only those whose note names this instruction set.")
def table(results: Path, isa: str) -> None:
    """Prints one Markdown table from the lines of `run`."""
    records = [json.loads(line) for line in results.read_text().splitlines() if line.startswith("{")]
    ceilings = {(r["ceiling"], r["threads"]): r["value"] for r in records if "ceiling" in r}
    lines: dict[tuple[str, str, str, str, int], dict[str, Any]] = {}
    for r in records:
        if "ceiling" not in r and (r["engine"] != "pyllm" or isa in r["note"]):
            lines[r["engine"], r["model"], r["dtype"], r["case"], r["threads"]] = r
    click.echo("| model | case | pyllm | median | best peer | its median | ratio | limit | share |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for model, case, dtypes in ROWS:
        for dtype in dtypes:
            ours = lines.get(("pyllm", model, dtype, case, 2))
            if ours:
                click.echo(_row(ours, list(lines.values()), ceilings))


def _row(ours: dict[str, Any], lines: list[dict[str, Any]], ceilings: dict[tuple[str, int], float]) -> str:
    model, case, dtype = ours["model"], ours["case"], ours["dtype"]
    smaller = ours["unit"] == "ms"
    rivals = [
        r
        for r in lines
        if r["engine"] != "pyllm" and (r["model"], r["case"]) == (model, case) and BITS[r["dtype"]] >= BITS[dtype]
    ]
    best = (min if smaller else max)(rivals, key=lambda r: r["median"]) if rivals else None
    cells = [model, case, dtype, f"{_short(ours['median'])} {ours['unit']}"]
    if best:
        ratio = best["median"] / ours["median"] if smaller else ours["median"] / best["median"]
        name = f"{best['engine']} {best['dtype']}" + (" (1 thread)" if best["threads"] == 1 else "")
        cells += [name, _short(best["median"]), f"{ratio:.2f}"]
    else:
        cells += ["", "", ""]
    limit = _limit(model, case, dtype, ceilings)
    if limit:
        share = limit / ours["median"] if smaller else ours["median"] / limit
        cells += [_short(limit), f"{100 * share:.0f} %"]
    else:
        cells += ["", ""]
    disturbed = " ?" if ours["others_cpu"] > 0.05 or (best and best["others_cpu"] > 0.05) else ""
    return "| " + " | ".join(cells) + disturbed + " |"


def _limit(model: str, case: str, dtype: str, ceilings: dict[tuple[str, int], float]) -> float | None:
    """In the unit of the case; None where it is not known."""
    if model not in WEIGHTS:
        return None
    body, head = WEIGHTS[model]
    peak = 1e9 * _peak(dtype, ceilings)
    if case.startswith("enc_"):
        sequences = int(case.split("_")[1][1:])
        seconds = 2.0 * body * 128 * sequences / peak
        return 1e3 * seconds if sequences == 1 else sequences / seconds
    if case == "prefill512":
        return 512 / ((2.0 * body * 512 + 2.0 * head) / peak)
    rows = {"decode_b8": 8, "decode_b32": 32, "beam4": 4}.get(case, 1)
    weight_bytes = BYTES[dtype] * (body + head)
    step = max(weight_bytes / (1e9 * _bandwidth(weight_bytes, ceilings)), 2.0 * (body + head) * rows / peak)
    return (1 if case == "beam4" else rows) / step


def _peak(dtype: str, ceilings: dict[tuple[str, int], float]) -> float:
    """Billions of operations a second of the instruction that the precision runs on, two threads. int8 and int4 take
    two products for 16-bit activations, int8-fast one."""
    threads = max(count for name, count in ceilings if name == "float32")
    wanted = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}.get(dtype, "int8")
    value = ceilings.get((wanted, threads), ceilings["float32", threads])
    if wanted == "bfloat16":
        value = max(value, ceilings.get(("bfloat16 tiles", threads), 0))
    return value / 2 if dtype in ("int8", "int4", "int4-g128") else value


def _bandwidth(size: float, ceilings: dict[tuple[str, int], float]) -> float:
    """GB/s of reading that many bytes again and again, between the footprints measured; two threads."""
    threads = max(count for name, count in ceilings if name == "float32")
    points = sorted(
        (float(name.split()[1]) * 2**20, value)
        for (name, count), value in ceilings.items()
        if name.startswith("read") and count == threads
    )
    if size <= points[0][0]:
        return points[0][1]
    for (small, fast), (large, slow) in itertools.pairwise(points):
        if size <= large:
            return fast + (slow - fast) * (size - small) / (large - small)
    return points[-1][1]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    main()
