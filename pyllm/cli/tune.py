"""`pyllm tune`: measures this machine's thresholds once; every model uses them from then on."""

from __future__ import annotations

from typing import Any

import click

from ..devices import tuning
from ..errors import InvalidOptionError
from . import options


@click.command()
@click.argument("model", default="default")
@options.loading
def tune(model: str, **loading: Any) -> None:
    """Measure from how many rows on threads should share work, on MODEL, a decoder of the size you use.

    The result is kept for this processor, instruction set and number of threads. It changes speed, never an answer.
    """
    with options.load(model, **loading) as loaded:
        runner: Any = loaded.runner
        if loaded.network.kind != "decoder" or not hasattr(runner, "set_sharing"):
            raise InvalidOptionError(f"[tune] needs a decoder on the cpu device, got {model}; name another model")
        found = tuning.measure(
            runner.run,
            runner.new_cache,
            runner.set_sharing,
            num_threads=runner.num_threads,
            max_rows=loaded.max_positions,
        )
        where = tuning.keep(runner.isa, runner.num_threads, found)
    own = "never" if found.own_rows == tuning.NEVER else f"from {found.own_rows} rows a thread on"
    click.echo(f"inputs of matmuls are repeated up to {found.repeat_rows} rows; whole rows a thread: {own}")
    click.echo(f"kept in {where}", err=True)
