"""Options that commands share: how the model is loaded, what they read, how they print, generate()'s options."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

import pyllm

from ..errors import InvalidOptionError

Command = TypeVar("Command", bound=Callable[..., Any])
BATCH_SIZE = 8


def _all(*added: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Adds several arguments and options, which --help lists in this order."""

    def apply(command: Command) -> Command:
        for each in reversed(added):
            command = each(command)
        return command

    return apply


loading = _all(  # collected by `load`
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
    click.option("--quantization", metavar="TYPE", help="Pack weights as int8, int8-fast, int4 or int4-g128."),
    click.option("--kv-cache", metavar="TYPE", help="Keep keys and values as int8, or as another dtype."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or reference."),
    click.option("--threads", type=int, help="Threads [default: PYLLM_NUM_THREADS, OMP_NUM_THREADS or all cores]."),
)

reading = _all(  # see `texts.read`
    click.argument("texts", nargs=-1, metavar="[TEXT]..."),
    click.option(
        "--file",
        "-f",
        "files",
        multiple=True,
        metavar="FILE",
        help="Read texts from FILE, one a line, or JSON objects where its name ends in .jsonl; - is stdin.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(1), default=BATCH_SIZE, show_default=True, help="Texts run together."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line instead of text."),
)

settings = click.option(  # read by `parsed_settings`
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any option of generate(), VALUE as JSON."
)


def load(
    model: str, dtype: str, device: str, threads: int | None, quantization: str | None, kv_cache: str | None
) -> Any:
    """The model of a command; "default" is the one that comes with pyllm."""
    source = pyllm.default_model() if model == "default" else model
    return pyllm.load(
        source,
        dtype=dtype,
        device=device,
        quantization=quantization,
        kv_cache=kv_cache,
        num_threads=threads,
        progress=True,
    )


def parsed_settings(pairs: tuple[str, ...], **named: Any) -> dict[str, Any]:
    """NAME=VALUE pairs, and `named` options that are not None. Raises InvalidOptionError listing those without "="."""
    broken = [pair for pair in pairs if "=" not in pair]
    if broken:
        listed = ", ".join(map(repr, broken))
        raise InvalidOptionError(f"[generate] --set takes NAME=VALUE, got {listed}; add the value")
    values = {name: _value(text) for name, _, text in (pair.partition("=") for pair in pairs)}
    return values | {name: value for name, value in named.items() if value is not None}


def _value(text: str) -> Any:
    """JSON where it is JSON, Python's own words for it, else the text itself."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number or a nest of absurd size
        return text
