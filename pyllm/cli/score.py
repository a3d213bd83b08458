"""`pyllm score`: how likely a model finds texts: log-probabilities and perplexity."""

from __future__ import annotations

import math
from typing import Any

import click

from ..engine.language_model import LanguageModel
from ..engine.scoring import Score
from ..errors import InvalidOptionError
from . import options, texts


@click.command()
@click.argument("model")
@options.reading
@click.option("--tokens", "by_token", is_flag=True, help="Show every token with its log-probability.")
@options.loading
def score(
    model: str,
    texts: tuple[str, ...],
    files: tuple[str, ...],
    batch_size: int,
    as_json: bool,
    by_token: bool,
    **loading: Any,
) -> None:
    """Print perplexity and log-probability of TEXTs, or of the lines of files or stdin, under MODEL, a decoder."""
    with options.load(model, **loading) as loaded:
        if not isinstance(loaded, LanguageModel):
            kind = loaded.network.kind
            cure = "load a decoder" if kind == "encoder" else "use its score() in Python, which takes pairs"
            raise InvalidOptionError(f"[score] needs a decoder, {model} is an {kind}; {cure}")

        def work(batch: list[_texts.Item]) -> list[dict[str, Any]]:
            found = loaded.score([item["text"] for item in batch])
            return [_record(loaded, each, by_token or as_json) for each in found]

        _texts.run(
            _texts.read(texts, files),
            batch_size,
            work,
            _shown,
            as_json=as_json,
            count_tokens=lambda _, record: int(record["tokens"]),
        )


_texts = texts  # the command's own parameter has the same name


def _record(model: LanguageModel, found: Score, by_token: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "perplexity": None if math.isnan(found.perplexity) else found.perplexity,
        "logprob": found.total,
        "tokens": len(found.token_ids),
    }
    if by_token:
        record["token_logprobs"] = [
            {"token": model.tokenizer.id_to_token(token), "id": token, "logprob": None if math.isnan(p) else float(p)}
            for token, p in zip(found.token_ids, found.logprobs, strict=True)
        ]
    return record


def _shown(item: texts.Item, record: dict[str, Any]) -> str:
    perplexity = "-" if record["perplexity"] is None else f"{record['perplexity']:.4f}"
    lines = [f"{perplexity}\t{record['logprob']:.4f}\t{record['tokens']}\t{item['text']}"]
    for entry in record.get("token_logprobs", ()):
        shown = "-" if entry["logprob"] is None else f"{entry['logprob']:.4f}"
        lines.append(f"  {shown}\t{entry['token']}")
    return "\n".join(lines)
