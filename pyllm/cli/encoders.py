"""`pyllm answer`, `fill`, `classify` and `embed`: what encoders do with texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

import pyllm

from ..engine.encoder_model import EncoderModel
from ..errors import InvalidOptionError
from . import options, texts


@click.command()
@click.argument("model")
@options.reading
@click.option("--context", help="The text that holds the answers.")
@click.option("--context-file", type=click.Path(dir_okay=False), help="The same from a file.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Answers to each question.")
@options.loading
def answer(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    context: str | None,
    context_file: str | None,
    top_k: int,
    **loading: Any,
) -> None:
    """Answer questions (TEXTs, lines, or JSON objects with "question" and "context") from a context with MODEL, a
    BERT-like model with a question answering head."""
    if context is not None and context_file is not None:
        raise InvalidOptionError("[answer] --context and --context-file are the same, both were given; drop one")
    shared = Path(context_file).read_text("utf-8") if context_file is not None else context
    keys = ("question", "context") if shared is None else ("question",)
    with options.load(model, **loading) as loaded:
        pipe: Any = pyllm.pipeline("question-answering", model=loaded)

        def work(batch: list[_Item]) -> list[Any]:
            inputs = [{"question": item["question"], "context": item.get("context", shared)} for item in batch]
            found = pipe(inputs, top_k=top_k, batch_size=batch_size)
            return found if isinstance(found, list) and len(batch) > 1 else [found]

        _run(texts, files, keys, batch_size, as_json, work, _answers, loaded)


@click.command()
@click.argument("model")
@options.reading
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="Tokens for each mask.")
@options.loading
def fill(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    top_k: int,
    **loading: Any,
) -> None:
    """Fill the masks in TEXTs (BERT's [MASK], RoBERTa's <mask>) with MODEL, a masked language model."""
    with options.load(model, **loading) as loaded:
        pipe: Any = pyllm.pipeline("fill-mask", model=loaded)

        def work(batch: list[_Item]) -> list[Any]:
            found = pipe([item["text"] for item in batch], top_k=top_k, batch_size=batch_size)
            return [found] if len(batch) == 1 and found and isinstance(found[0], dict) else list(found)

        _run(texts, files, ("text",), batch_size, as_json, work, _filled, loaded)


@click.command()
@click.argument("model")
@options.reading
@click.option("--labels", help="Classify by these labels, separated by commas (zero-shot, with an NLI model).")
@click.option("--tokens", is_flag=True, help="Classify tokens (named entities) instead of whole texts.")
@click.option("--top-k", type=click.IntRange(1), help="Labels of each text [default: the best].")
@options.loading
def classify(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    labels: str | None,
    tokens: bool,
    top_k: int | None,
    **loading: Any,
) -> None:
    """Classify TEXTs, or the lines of files or stdin, with MODEL."""
    if tokens and (labels is not None or top_k is not None):
        raise InvalidOptionError("[classify] --tokens excludes --labels and --top-k, both were given; drop one")
    task = "token-classification" if tokens else "zero-shot-classification" if labels else "text-classification"
    settings: dict[str, Any] = {"aggregation_strategy": "simple"} if tokens else {}
    if labels:
        settings["candidate_labels"] = [label.strip() for label in labels.split(",")]
    elif top_k is not None:
        settings["top_k"] = top_k
    with options.load(model, **loading) as loaded:
        pipe: Any = pyllm.pipeline(task, model=loaded)

        def work(batch: list[_Item]) -> list[Any]:
            inputs = [item["text"] for item in batch]
            return list(pipe(inputs, batch_size=batch_size, **settings))

        def show(item: _Item, result: Any) -> str:
            return _labels(result, top_k or 1 if labels else None)

        _run(texts, files, ("text",), batch_size, as_json, work, show, loaded)


@click.command()
@click.argument("model")
@options.reading
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="Write float32 [n, D] to this .npy file.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors' lengths as they are.")
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the model takes.")
@options.loading
def embed(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    output: str | None,
    no_normalize: bool,
    truncate: bool,
    **loading: Any,
) -> None:
    """Turn TEXTs, or the lines of files or stdin, into vectors with MODEL: one a line, or all in a .npy file."""
    rows: list[Any] = []
    with options.load(model, **loading) as loaded:
        if not isinstance(loaded, EncoderModel):
            kind = loaded.network.kind
            raise InvalidOptionError(f"[embed] needs an encoder (BERT and so on), {model} is of kind {kind}; load one")

        def work(batch: list[_Item]) -> Any:
            inputs = [item["text"] for item in batch]
            found = loaded.embed(inputs, normalize=not no_normalize, batch_size=batch_size, truncation=truncate)
            if output is not None:
                rows.append(found)
            return found

        if output is None:
            _run(texts, files, ("text",), batch_size, as_json, work, _vector, loaded)
            return
        for batch in _texts.batches(_texts.read(texts, files), batch_size):
            work(batch)
    matrix = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
    with Path(output).open("wb") as file:  # given a name, NumPy would put .npy behind it
        np.save(file, matrix)
    click.echo(f"{output}: float32 {list(matrix.shape)}", err=True)


_texts = texts  # the commands' own parameter has the same name
_Item = texts.Item


def _run(
    given: tuple[str, ...],
    files: tuple[str, ...],
    keys: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    work: Any,
    show: Any,
    loaded: Any,
) -> None:
    def tokens(item: _Item, _: Any) -> int:
        return sum(len(loaded.tokenizer.encode(item[key])) for key in keys)

    items = _texts.read(given, files, keys)
    _texts.run(items, batch_size, work, show, as_json=as_json, count_tokens=tokens)


def _answers(_: _Item, result: Any) -> str:
    records = result if isinstance(result, list) else [result]
    return "\n".join(f"{record['answer']}\t{record['score']:.4f}" for record in records)


def _filled(_: _Item, result: Any) -> str:
    masks = result if result and isinstance(result[0], list) else [result]
    return "\n".join(f"{record['score']:.4f}\t{record['sequence']}" for mask in masks for record in mask)


def _labels(result: Any, shown: int | None) -> str:
    if isinstance(result, dict) and "labels" in result:  # zero-shot
        pairs = zip(result["labels"][:shown], result["scores"][:shown], strict=True)
        return "\n".join(f"{label}\t{score:.4f}" for label, score in pairs)
    records = result if isinstance(result, list) else [result]
    if records and "entity_group" in records[0]:
        return "\n".join(f"{r['entity_group']}\t{r['word']}\t{r['start']}-{r['end']}" for r in records)
    return "\n".join(f"{record['label']}\t{record['score']:.4f}" for record in records)


def _vector(_: _Item, row: Any) -> str:
    return " ".join(f"{value:.6g}" for value in row)
