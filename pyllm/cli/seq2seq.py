"""`pyllm translate` and `pyllm summarize`: one text in, one text out."""

from __future__ import annotations

from typing import Any

import click

import pyllm

from . import options, texts


@click.command()
@click.argument("model")
@options.reading
@click.option("--from", "--src-lang", "src_lang", metavar="CODE", help="Language of the texts, for models of several.")
@click.option("--to", "--tgt-lang", "tgt_lang", metavar="CODE", help="Language to translate to, for models of several.")
@click.option("--num-beams", type=int, help="Beams [default: the checkpoint's].")
@click.option("--max-length", type=int, help="Most tokens of a translation [default: the checkpoint's].")
@options.settings
@options.loading
def translate(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    src_lang: str | None,
    tgt_lang: str | None,
    num_beams: int | None,
    max_length: int | None,
    settings: tuple[str, ...],
    **loading: Any,
) -> None:
    """Translate TEXTs, or the lines of files or stdin, with MODEL (Marian, NLLB, M2M100, mBART, T5)."""
    named = {"src_lang": src_lang, "tgt_lang": tgt_lang, "num_beams": num_beams, "max_length": max_length}
    given = options.parsed_settings(settings, **named)
    _run(model, "translation", "translation_text", texts, files, batch_size, as_json, given, loading)


@click.command()
@click.argument("model")
@options.reading
@click.option("--num-beams", type=int, help="Beams [default: the checkpoint's].")
@click.option("--min-length", type=int, help="Fewest tokens of a summary [default: the checkpoint's].")
@click.option("--max-length", type=int, help="Most tokens of a summary [default: the checkpoint's].")
@options.settings
@options.loading
def summarize(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    num_beams: int | None,
    min_length: int | None,
    max_length: int | None,
    settings: tuple[str, ...],
    **loading: Any,
) -> None:
    """Summarize TEXTs, or the lines of files or stdin, with MODEL (BART, Pegasus, T5)."""
    given = options.parsed_settings(settings, num_beams=num_beams, min_length=min_length, max_length=max_length)
    _run(model, "summarization", "summary_text", texts, files, batch_size, as_json, given, loading)


def _run(
    model: str,
    task: str,
    key: str,
    given: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    settings: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    with options.load(model, **loading) as loaded:
        pipe: Any = pyllm.pipeline(task, model=loaded)

        def work(batch: list[texts.Item]) -> list[list[dict[str, Any]]]:
            found = pipe([item["text"] for item in batch], batch_size=batch_size, **settings)
            return [each if isinstance(each, list) else [each] for each in found]

        texts.run(
            texts.read(given, files),
            batch_size,
            work,
            lambda _, records: "\n".join(record[key] for record in records),
            as_json=as_json,
            count_tokens=lambda _, records: sum(len(loaded.tokenizer.encode(record[key])) for record in records),
        )
