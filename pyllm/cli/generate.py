"""`pyllm generate`: continue a prompt, streaming the text to stdout; numbers and progress go to stderr."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

import pyllm

from ..errors import InvalidOptionError, PromptError

if TYPE_CHECKING:
    from ..engine.language_model import LanguageModel
    from ..engine.results import Generation

DEFAULT_NEW_TOKENS = 256  # as the text-generation pipeline


@dataclass
class _Timed:
    """A generation and its clock: seconds to the first new text (None when it came all at once) and to the end."""

    result: Generation
    first: float | None
    total: float


@click.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, help=f"Most new tokens [default: {DEFAULT_NEW_TOKENS}, or the context].")
@click.option("--num-beams", type=int, help="Beam search with this many beams; the text then comes at the end.")
@click.option("--temperature", type=float, help="Sample at this temperature; 0 takes the likeliest token each time.")
@click.option("--seed", type=int, help="Repeatable sampling.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or reference.")
@click.option("--threads", type=int, help="Threads (default: PYLLM_NUM_THREADS, OMP_NUM_THREADS or all cores).")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any option of generate(), VALUE as JSON.")
@click.option("--no-prompt", is_flag=True, help="Print the continuation only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def generate(
    model: str,
    prompt: str,
    max_new_tokens: int | None,
    num_beams: int | None,
    temperature: float | None,
    seed: int | None,
    dtype: str,
    device: str,
    threads: int | None,
    settings: tuple[str, ...],
    no_prompt: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT ("-" reads stdin) with MODEL: a folder, a Hub id, or "default" for the model that comes with
    pyllm. Options the checkpoint's generation_config.json sets apply unless given here."""
    options = _settings(settings)
    named = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "seed": seed}
    options |= {name: value for name, value in named.items() if value is not None}
    if temperature is not None:
        options |= {"temperature": temperature, "do_sample": True} if temperature else {"do_sample": False}
    if prompt == "-":
        prompt = _standard_input()
    source = pyllm.default_model() if model == "default" else model
    with pyllm.load(source, dtype=dtype, device=device, num_threads=threads, progress=True) as loaded:
        timed = _run(loaded, prompt, options, "" if no_prompt else prompt, quiet=as_json)
        if as_json:
            escape = getattr(sys.stdout, "encoding", "utf-8").lower() not in ("utf-8", "utf8")
            click.echo(json.dumps(_report(model, loaded, prompt, timed), ensure_ascii=escape))
        else:
            click.echo(_summary(timed), err=True)


def _run(model: LanguageModel, prompt: str, options: dict[str, Any], shown: str, *, quiet: bool) -> _Timed:
    """Generates and, unless quiet, prints: piece by piece where one certain text exists, else all at the end."""
    from ..decode.options import GenerationOptions

    config = dict(model.generation_config)
    if config.get("max_new_tokens") is None and config.get("max_length") is None:
        config["max_new_tokens"] = DEFAULT_NEW_TOKENS
    checked = GenerationOptions.build(config, options)
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


def _standard_input() -> str:
    """All of stdin, without its last line break. Raises PromptError where there is none."""
    if sys.stdin is None:
        raise PromptError('[generate] the prompt "-" is read from stdin, which is closed; pipe a text in or give it')
    return sys.stdin.read().removesuffix("\n")


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs. Raises InvalidOptionError listing those without "="."""
    broken = [setting for setting in settings if "=" not in setting]
    if broken:
        raise InvalidOptionError(
            f"[generate] --set takes NAME=VALUE, got {', '.join(map(repr, broken))}; add the value"
        )
    return {name: _value(text) for name, _, text in (setting.partition("=") for setting in settings)}


def _value(text: str) -> Any:
    """JSON where it is JSON, Python's own words for it, else the text itself."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number or a nest of absurd size
        return text


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
    sequences = [
        {"text": s.text, "token_ids": s.token_ids, "score": s.score, "finish_reason": s.finish_reason}
        for s in result.sequences
    ]
    return {
        "model": name,
        "dtype": model.dtype,
        "device": model.device,
        "prompt": prompt,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": _new_tokens(result),
        "sequences": sequences,
        "seed": result.seed,
        "seconds": round(timed.total, 4),
        "seconds_to_first": None if timed.first is None else round(timed.first, 4),
        "tokens_per_second": round(_new_tokens(result) / timed.total, 2),
    }
