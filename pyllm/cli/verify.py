"""`pyllm verify`: does a model give here what it gives elsewhere?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..verify import verify as run_verify


@click.command()
@click.argument("model")
@click.option(
    "--reference",
    metavar="PATH",
    help="Folder or JSON file with recorded outputs [default: ask transformers now, which must be installed].",
)
@click.option("--save", metavar="FOLDER", help="Write the reference there, for later runs without transformers.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything that was found as JSON.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page with plots of the differences.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "reference"]), default="auto", show_default=True)
@click.option("--threads", "num_threads", type=int, help="Threads to use [default: all cores].")
@click.option("--tolerance", type=float, help="Largest difference of logits that agrees [default: by dtype].")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="One more text to ask transformers about.")
def verify(model: str, json_file: str | None, html_file: str | None, **options: Any) -> None:
    """Compare MODEL's tokenization, logits, greedy and beam texts with transformers or with recorded outputs.

    Exits with 0 when all agree, else with 1.
    """
    report = run_verify(model, **options)
    click.echo(report.table())
    if json_file is not None:
        text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False)
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    if html_file is not None:
        from ..verify.page import page

        Path(html_file).write_text(page(report), encoding="utf-8")
    if not report.agrees:
        raise SystemExit(1)
