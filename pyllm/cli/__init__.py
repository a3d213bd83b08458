"""The `pyllm` command: one file per subcommand. Exit codes: 0 done, 1 a PyllmError, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from typing import Any

import click

import pyllm

from ..errors import PyllmError

# Command -> the module that has it, in the order of --help. Modules are imported when their command is used.
COMMANDS = {
    "generate": "generate",
    "chat": "chat",
    "translate": "seq2seq",
    "summarize": "seq2seq",
    "answer": "encoders",
    "fill": "encoders",
    "classify": "encoders",
    "embed": "encoders",
    "score": "score",
    "inspect": "inspect",
    "verify": "verify",
    "bench": "bench",
    "quantize": "quantize",
    "tune": "tune",
    "doctor": "doctor",
}


class _Commands(click.Group):
    """Finds commands by name, and turns what they may raise into one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name]}", __name__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a text may hold what the terminal's encoding lacks
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: click.echo(f"warning: {message}", err=True)
            try:
                return super().invoke(ctx)
            except (PyllmError, ImportError) as error:
                click.echo("error: " + " ".join(str(error).split()), err=True)
                ctx.exit(1)
            except OSError as error:
                if error.errno == errno.EPIPE:  # the reader has gone, which click takes quietly
                    raise
                what = error.filename or "the output could not be written"
                click.echo(f"error: {what}: {error.strerror or error}", err=True)
                ctx.exit(1)
            except KeyboardInterrupt:
                click.echo("\ninterrupted", err=True)
                ctx.exit(130)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyllm.__version__, prog_name="pyllm")
def main() -> None:
    """Run Hugging Face language models without PyTorch."""
