"""`pyllm quantize`: writes a model with integer weights, and a receipt of what that cost."""

from __future__ import annotations

import json
from pathlib import Path

import click

import pyllm

from .. import quantization
from ..errors import InvalidOptionError
from ..quantization.quantize import LIMITS

TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--to", type=click.Choice(list(LIMITS)), default="int8", show_default=True, help="Form of the weights.")
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option("--calibrate", type=TEXT, help="Text for error compensation.")
@click.option("--text", type=TEXT, help="Text to measure drift on [default: one that comes with pyllm].")
@click.option("--max-change", type=float, help="Largest change of perplexity accepted, 0.02 being 2 %.")
@click.option("--force", is_flag=True, help="Keep the result even if it is further from its source.")
@click.option("--threads", type=int, help="Threads [default: all cores].")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def quantize(
    model: str,
    to: str,
    output: Path,
    calibrate: Path | None,
    text: Path | None,
    max_change: float | None,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write MODEL (a folder or Hub id; "default" is the one that comes with pyllm) with integer weights.

    The folder loads like any other, in an instant; its layout is compressed-tensors'. Perplexity and divergence from
    the source are measured, and a result that is too far from it is not kept.
    """
    try:
        receipt = quantization.quantize(
            pyllm.default_model() if model == "default" else model,
            output,
            to=to,
            calibrate=_read(calibrate),
            text=_read(text),
            max_change=max_change,
            force=force,
            num_threads=threads,
            progress=lambda what: click.echo(f"{what} ...", err=True),
        )
    except quantization.TooFarError as error:
        click.echo(str(error.receipt), err=True)
        raise
    click.echo(json.dumps(receipt.as_dict()) if as_json else str(receipt))


def _read(path: Path | None) -> str | None:
    """Raises InvalidOptionError for what is not UTF-8."""
    try:
        return None if path is None else path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidOptionError(
            f"[quantize] a text must be UTF-8, {path} is not ({error.reason}); convert it"
        ) from None
