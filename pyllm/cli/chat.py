"""`pyllm chat`: a conversation in the terminal. Ctrl-C ends an answer, Ctrl-D (or /exit) the program."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..decode.options import GenerationOptions
from ..engine.language_model import LanguageModel
from ..errors import InvalidOptionError, PromptError
from . import options, texts

HELP = """\
/help            this text
/system TEXT     set the system message and start anew
/clear           forget the conversation
/retry           answer the last message again
/undo            take the last message and its answer back
/history         show the conversation
/save FILE       write it to FILE as JSON
/exit            leave (as Ctrl-D does)
A line that ends in \\ goes on in the next one; a message between lines of \"\"\" may have empty lines.
Ctrl-C stops an answer."""


@click.command()
@click.argument("model")
@click.option("--system", help="System message.")
@click.option("--template", type=click.Path(exists=True, dir_okay=False), help="Jinja chat template to use instead.")
@click.option("--max-new-tokens", type=int, help="Most tokens of an answer [default: to the end of the context].")
@click.option("--temperature", type=float, help="Sample at this temperature; 0 takes the likeliest token each time.")
@click.option("--seed", type=int, help="Repeatable answers.")
@options.settings
@options.loading
def chat(
    model: str,
    system: str | None,
    template: str | None,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    settings: tuple[str, ...],
    **loading: Any,
) -> None:
    """Talk with MODEL, a decoder with a chat template. Answers appear as they are written; /help lists the commands."""
    given = options.parsed_settings(settings, max_new_tokens=max_new_tokens, seed=seed)
    if temperature is not None:
        given |= {"temperature": temperature, "do_sample": True} if temperature else {"do_sample": False}
    with options.load(model, **loading) as loaded:
        if not isinstance(loaded, LanguageModel):
            raise InvalidOptionError(f"[chat] needs a decoder, {model} is an {loaded.network.kind}; load another")
        chosen = None if template is None else Path(template).read_text("utf-8")
        talk = Conversation(loaded, given, system, chosen)
        talk.prompt_ids([{"role": "user", "content": "?"}])  # a model that can't chat says so before the first message
        _use_line_editing()
        _loop(talk)


class Conversation:
    """Messages so far, and the model that answers. template: instead of the checkpoint's."""

    def __init__(
        self, model: LanguageModel, given: dict[str, Any], system: str | None = None, template: str | None = None
    ) -> None:
        self.messages: list[dict[str, str]] = []
        self._model = model
        self._template = template
        config = dict(model.generation_config)
        if config.get("max_new_tokens") is None and config.get("max_length") is None:
            config["max_new_tokens"] = model.max_positions
        self._options = GenerationOptions.build(config, given)
        self.start(system)

    def start(self, system: str | None) -> None:
        """A new conversation."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """What the model reads. Raises TokenizerError for a model without a template."""
        tokenizer = self._model.tokenizer
        ids: Any = tokenizer.apply_chat_template(messages, chat_template=self._template, add_generation_prompt=True)
        return list(ids)

    def answer(self, message: str) -> None:
        """Prints the answer as it comes and keeps it, also when Ctrl-C cuts it short. When it can't be given the
        conversation stays as it was."""
        ids = self.prompt_ids([*self.messages, {"role": "user", "content": message}])
        stream, pieces, started = self._model.stream_ids(ids, self._options), [], time.perf_counter()
        stopped = False
        try:
            for piece in stream:
                pieces.append(piece)
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            stopped = True
            stream.close()
        click.echo()
        said = {"role": "assistant", "content": "".join(pieces)}
        self.messages += [{"role": "user", "content": message}, said]
        if stopped:
            click.echo("(stopped)", err=True)
            return
        count, seconds = len(stream.result.token_ids), time.perf_counter() - started
        click.echo(f"({len(ids)} + {count} tokens, {count / max(seconds, 1e-9):.1f} tokens/s)", err=True)

    def take_back(self) -> str | None:
        """Removes the last exchange and returns its message; None when there is none."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            return None
        message = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return message


def _loop(talk: Conversation) -> None:
    while True:
        try:
            message = _read_message()
        except KeyboardInterrupt:
            click.echo()
            continue
        if message is None or message == "/exit":
            return
        if not message.strip():
            continue
        try:
            if message.startswith("/"):
                _command(talk, message)
            else:
                talk.answer(message)
        except (PromptError, OSError) as error:  # too long, or a file that can't be written: the conversation stays
            click.echo(f"error: {error}", err=True)


def _command(talk: Conversation, line: str) -> None:
    name, _, rest = line.partition(" ")
    if name == "/system":
        talk.start(rest or None)
    elif name == "/clear":
        system = [m["content"] for m in talk.messages if m["role"] == "system"]
        talk.start(system[0] if system else None)
    elif name in ("/retry", "/undo"):
        message = talk.take_back()
        if message is None:
            click.echo("there is no answer yet", err=True)
        elif name == "/retry":
            talk.answer(message)
    elif name == "/history":
        for message_ in talk.messages:
            click.echo(f"{message_['role']}: {message_['content']}")
    elif name == "/save" and rest:
        Path(rest).write_text(texts.to_json(talk.messages) + "\n", "utf-8")
    else:
        click.echo(HELP, err=True)


def _read_message() -> str | None:
    """A message of one or more lines; None at the end of the input."""
    lines: list[str] = []
    quoted = False
    while True:
        try:
            line = input("... " if lines or quoted else ">>> ") if sys.stdin.isatty() else _plain_line()
        except EOFError:
            return "\n".join(lines) if lines else None
        if line.strip() == '"""':
            if quoted:
                return "\n".join(lines)
            quoted = True
        elif quoted or line.endswith("\\"):
            lines.append(line if quoted else line[:-1])
        else:
            return "\n".join([*lines, line])


def _plain_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _use_line_editing() -> None:
    with contextlib.suppress(ImportError):  # absent on some systems; input() then has no history
        import readline

        readline.parse_and_bind("tab: self-insert")
