"""`pyllm bench`: how fast a model runs here, beside what the machine's memory allows; with --profile op by op."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import click
import numpy as np

from .. import _C
from ..engine.encoder_model import EncoderModel
from ..engine.model import Model
from ..errors import InvalidOptionError
from ..quantization.receipt import median_seconds
from . import options


@click.command()
@click.argument("model", default="default")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens of a prompt or text.")
@click.option("--new", type=click.IntRange(2), default=64, show_default=True, help="Tokens generated for each.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 8), help="Texts run together.")
@click.option("--beams", type=click.IntRange(1), default=1, show_default=True, help="Beams of the search.")
@click.option("--profile", is_flag=True, help="Show where the time of the last measurement went, op by op.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@options.loading
def bench(
    model: str,
    prompt: int,
    new: int,
    batches: tuple[int, ...],
    beams: int,
    profile: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure MODEL (a folder or Hub id) on random tokens: tokens a second of prompts, of generation, or of encoding.

    Figures are medians. "of bandwidth" compares a decoding step with reading every weight once at the speed at which
    this machine's processors read as many bytes. --profile on a GPU runs every operation by itself, without graphs.
    """
    start = time.perf_counter()
    with options.load(model, **loading) as loaded:
        seconds = time.perf_counter() - start
        report: dict[str, Any] = {"load_seconds": round(seconds, 3), **_about(loaded), "measured": []}
        runner: Any = loaded.runner
        for batch in batches:
            texts = _random_texts(loaded, batch, prompt)
            if isinstance(loaded, EncoderModel):
                report["measured"].append(_encoding(loaded, texts))
            else:
                report["measured"].append(_generation(loaded, texts, new, beams, report["read_gbs"]))
        if profile:
            report["profile"] = _profile(runner, _last_call(loaded, texts, new, beams))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(report)


def _about(model: Model) -> dict[str, Any]:
    held = model.memory_report()
    weights = held.get("weights", 0)
    threads = getattr(model.runner, "num_threads", None)
    return {
        "device": model.device,
        "kind": model.network.kind,
        "dtype": model.dtype,
        "quantization": getattr(model, "quantization", None),
        "isa": getattr(model.runner, "isa", None),
        "threads": threads,
        "weight_bytes": weights,
        "read_gbs": round(_C.read_bandwidth(max(weights, 1 << 20), threads) / 1e9, 1) if weights and threads else None,
    }


def _random_texts(model: Model, batch: int, prompt: int) -> list[list[int]]:
    """Seeded, without the first few ids, which are often special."""
    vocabulary = model.network.main.vocab_size
    generator = np.random.default_rng(0)
    return [generator.integers(min(100, vocabulary // 2), vocabulary, prompt).tolist() for _ in range(batch)]


def _generate(model: Any, texts: list[list[int]], new: int, beams: int) -> Callable[[], Any]:
    fixed = {"max_new_tokens": new, "min_new_tokens": new, "eos_token_id": [], "do_sample": False, "num_beams": beams}
    return lambda: model.generate(texts, **fixed)


def _generation(model: Any, texts: list[list[int]], new: int, beams: int, read_gbs: float | None) -> dict[str, Any]:
    first = median_seconds(_generate(model, texts, 1, beams))
    whole = median_seconds(_generate(model, texts, new, beams))
    step = (whole - first) / (new - 1) if whole > first else whole / new  # too short to tell the first from others
    figures: dict[str, Any] = {
        "batch": len(texts),
        "prompt_tokens_per_second": round(sum(map(len, texts)) / first, 1),
        "new_tokens_per_second": round(len(texts) / step, 1),
        "first_token_seconds": round(first, 4),
        "step_milliseconds": round(1e3 * step, 3),
    }
    if read_gbs and model.network.kind == "decoder":
        figures["of_bandwidth"] = round(model.memory_report()["weights"] / (1e9 * read_gbs) / step, 3)
    return figures


def _encoding(model: EncoderModel, texts: list[list[int]]) -> dict[str, Any]:
    seconds = median_seconds(lambda: model.forward(texts, output="hidden"))
    return {
        "batch": len(texts),
        "texts_per_second": round(len(texts) / seconds, 1),
        "tokens_per_second": round(sum(map(len, texts)) / seconds, 1),
        "milliseconds": round(1e3 * seconds, 3),
    }


def _last_call(model: Any, texts: list[list[int]], new: int, beams: int) -> Callable[[], Any]:
    if isinstance(model, EncoderModel):
        return lambda: model.forward(texts, output="hidden")
    return _generate(model, texts, new, beams)


def _profile(runner: Any, call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Times by operation, those of all layers together. Raises InvalidOptionError for a device that keeps none."""
    if not hasattr(runner, "profile"):
        raise InvalidOptionError("[bench] --profile needs device cpu or cuda, others keep no times; use --device cpu")
    runner.profile(True)
    try:
        call()
        timings = runner.timings()
    finally:
        runner.profile(False)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for timing in timings:
        op = re.sub(r"^layer\d+", "layer*", timing.op)
        start = {"op": op, "program": timing.program, "calls": 0, "seconds": 0.0, "waited": 0.0, "bytes": 0}
        record = found.setdefault((timing.program, op), start)
        for name in ("calls", "seconds", "waited", "bytes"):
            record[name] += getattr(timing, name)
    return list(found.values())


def _show(report: dict[str, Any]) -> None:
    form = report["quantization"] or report["dtype"]
    where = f"{report['isa']}, {report['threads']} threads" if report["isa"] else report["device"]
    click.echo(
        f"{report['kind']}, {form}, {where}, "
        f"{report['weight_bytes'] / 1e6:,.0f} MB of weights, loaded in {report['load_seconds']:.2f} s"
    )
    if report["read_gbs"]:
        click.echo(f"this machine reads as many bytes at {report['read_gbs']} GB/s")
    for line in _table(report["measured"]):
        click.echo(line)
    if "profile" in report:
        click.echo("")
        for line in _table(_by_share(report["profile"])):
            click.echo(line)


def _by_share(timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table, the longest first. Time is the GPU's, or that of the thread that called: at work, and waiting
    for others."""
    total = sum(record["seconds"] + record["waited"] for record in timings) or 1.0
    rows = []
    for record in sorted(timings, key=lambda record: -record["seconds"] - record["waited"]):
        seconds, calls = record["seconds"] + record["waited"], record["calls"]
        rows.append(
            {
                "op": record["op"],
                "program": record["program"],
                "calls": calls,
                "ms": f"{1e3 * seconds:.2f}",
                "waiting": f"{1e3 * record['waited']:.2f}",
                "share": f"{100 * seconds / total:.1f} %",
                "us a call": f"{1e6 * seconds / max(calls, 1):.1f}",
                "GB/s": f"{record['bytes'] / seconds / 1e9:.1f}" if record["bytes"] and seconds else "",
            }
        )
    return rows


def _table(records: Iterable[dict[str, Any]]) -> list[str]:
    """Columns as wide as what they hold."""
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.replace("_", " ") for name in names]]
    cells += [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else str(value)
