"""`pyllm generate`: continue a prompt, streaming the text to stdout; numbers and progress go to stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import click

from ..decode.options import GenerationOptions
from ..engine.language_model import LanguageModel
from ..engine.results import Generation
from ..errors import InvalidOptionError
from . import options, texts

DEFAULT_NEW_TOKENS = 256  # as the text-generation pipeline


@dataclass
class _Timed:
    """A generation and its clock: seconds to the first new text (None when it came all at once) and to the end."""

    result: Generation
    first: float | None
    total: float


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--file", "-f", "files", multiple=True, metavar="FILE", help="Continue each line (.jsonl: each object).")
@click.option("--batch-size", type=click.IntRange(1), default=options.BATCH_SIZE, help="Prompts of files run together.")
@click.option("--max-new-tokens", type=int, help=f"Most new tokens [default: {DEFAULT_NEW_TOKENS}, or the context].")
@click.option("--num-beams", type=int, help="Beam search with this many beams; the text then comes at the end.")
@click.option("--temperature", type=float, help="Sample at this temperature; 0 takes the likeliest token each time.")
@click.option("--seed", type=int, help="Repeatable sampling.")
@options.settings
@click.option("--no-prompt", is_flag=True, help="Print the continuation only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (with files: one a prompt) instead.")
@options.loading
def generate(
    model: str,
    prompt: str | None,
    files: tuple[str, ...],
    batch_size: int,
    max_new_tokens: int | None,
    num_beams: int | None,
    temperature: float | None,
    seed: int | None,
    settings: tuple[str, ...],
    no_prompt: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Continue PROMPT ("-": all of stdin) with MODEL: a folder, a Hub id, or "default" for the model that comes with
    pyllm. Without PROMPT or files each line of a piped stdin is continued. Options the checkpoint's
    generation_config.json sets apply unless given here."""
    if prompt is None and not files and not (sys.stdin is not None and sys.stdin.isatty()):
        files = ("-",)
    if (prompt is None) == (not files):
        raise InvalidOptionError('[generate] needs either PROMPT ("-": all of stdin) or --file, got both or neither')
    given = options.parsed_settings(settings, max_new_tokens=max_new_tokens, num_beams=num_beams, seed=seed)
    if temperature is not None:
        given |= {"temperature": temperature, "do_sample": True} if temperature else {"do_sample": False}
    if prompt == "-":
        prompt = texts.standard_input("generate").read().removesuffix("\n")
    with options.load(model, **loading) as loaded:
        if not isinstance(loaded, LanguageModel):
            raise InvalidOptionError(
                f"[generate] needs a decoder, {model} is an {loaded.network.kind}; use "
                + ("embed, fill, classify or answer" if loaded.network.kind == "encoder" else "translate or summarize")
            )
        if prompt is None:
            _run_files(loaded, files, batch_size, given, no_prompt, as_json)
            return
        timed = _run(loaded, prompt, given, "" if no_prompt else prompt, quiet=as_json)
        if as_json:
            click.echo(texts.to_json(_report(model, loaded, prompt, timed)))
        else:
            click.echo(_summary(timed), err=True)


def _run_files(
    model: LanguageModel, files: tuple[str, ...], batch_size: int, given: dict[str, Any], no_prompt: bool, as_json: bool
) -> None:
    """One line, or JSON object, a prompt."""
    checked = _checked(model, given)

    def work(batch: list[texts.Item]) -> list[list[dict[str, Any]]]:
        results = model.run([model.tokenizer.encode(item["text"]) for item in batch], checked)
        return [_sequences(result) for result in results]

    def show(item: texts.Item, sequences: list[dict[str, Any]]) -> str:
        return "\n---\n".join(("" if no_prompt else item["text"]) + sequence["text"] for sequence in sequences)

    texts.run(
        texts.read((), files),
        batch_size,
        work,
        show,
        as_json=as_json,
        count_tokens=lambda _, sequences: sum(len(sequence["token_ids"]) for sequence in sequences),
    )


def _checked(model: LanguageModel, given: dict[str, Any]) -> GenerationOptions:
    config = dict(model.generation_config)
    if config.get("max_new_tokens") is None and config.get("max_length") is None:
        config["max_new_tokens"] = DEFAULT_NEW_TOKENS
    return GenerationOptions.build(config, given)


def _run(model: LanguageModel, prompt: str, given: dict[str, Any], shown: str, *, quiet: bool) -> _Timed:
    """Generates and, unless quiet, prints: piece by piece where one certain text exists, else all at the end."""
    checked = _checked(model, given)
    ids = model.tokenizer.encode(prompt)
    started = time.perf_counter()
    if checked.num_beams > 1 or checked.num_return_sequences > 1:
        result = model.run([ids], checked)[0]
        total = time.perf_counter() - started
        if not quiet:
            click.echo("\n---\n".join(shown + sequence.text for sequence in result.sequences))
        return _Timed(result, None, total)
    if not quiet:
        click.echo(shown, nl=False)
    stream, first = model.stream_ids(ids, checked), None
    for piece in stream:
        first = time.perf_counter() - started if first is None else first
        if not quiet:
            click.echo(piece, nl=False)
    if not quiet:
        click.echo()
    return _Timed(stream.result, first, time.perf_counter() - started)


def _new_tokens(result: Generation) -> int:
    return sum(len(sequence.token_ids) for sequence in result.sequences)


def _summary(timed: _Timed) -> str:
    result, tokens = timed.result, _new_tokens(timed.result)
    parts = [f"{result.prompt_tokens} + {tokens} tokens in {timed.total:.2f} s, {tokens / timed.total:.1f} tokens/s"]
    if timed.first is not None:
        parts.append(f"first after {timed.first:.3f} s")
    parts.append(f"finish: {result.finish_reason}")
    if result.seed is not None:
        parts.append(f"seed {result.seed}")
    return ", ".join(parts)


def _report(name: str, model: LanguageModel, prompt: str, timed: _Timed) -> dict[str, Any]:
    result = timed.result
    return {
        "model": name,
        "dtype": model.dtype,
        "device": model.device,
        "prompt": prompt,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": _new_tokens(result),
        "sequences": _sequences(result),
        "seed": result.seed,
        "seconds": round(timed.total, 4),
        "seconds_to_first": None if timed.first is None else round(timed.first, 4),
        "tokens_per_second": round(_new_tokens(result) / timed.total, 2),
    }


def _sequences(result: Generation) -> list[dict[str, Any]]:
    return [
        {"text": s.text, "token_ids": s.token_ids, "score": s.score, "finish_reason": s.finish_reason}
        for s in result.sequences
    ]
