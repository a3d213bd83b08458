"""What each form of the weights costs in quality: perplexity on a text against float32, as a Markdown table.

    python bench/quality.py [MODEL] [--text FILE] [--tokens N]

MODEL: a folder or Hub id of a decoder; default: the model that comes with pyllm, on the text that `pyllm quantize`
measures on. The text is cut into pieces of 256 tokens, each scored on its own.
"""

from __future__ import annotations

from pathlib import Path

import click

import pyllm
from pyllm.quantization import sample_text
from pyllm.quantization.drift import drift
from pyllm.quantization.moments import chunks

FORMS = [
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"quantization": "int8"},
    {"quantization": "int8-fast"},
    {"quantization": "int8", "kv_cache": "int8"},
    {"quantization": "int4"},
    {"quantization": "int4-g128"},
    {"quantization": "int4", "kv_cache": "int8"},
]


@click.command()
@click.argument("model", default="default")
@click.option("--text", type=click.Path(exists=True, path_type=Path), default=sample_text())
@click.option("--tokens", default=4096, show_default=True)
def main(model: str, text: Path, tokens: int) -> None:
    """See the head of this file."""
    source = pyllm.default_model() if model == "default" else model
    with pyllm.load(source, dtype="float32") as reference:
        ids = reference.tokenizer.encode(text.read_text("utf-8"), add_special_tokens=False)
        pieces = chunks([int(i) for i in ids], 256, tokens)
        click.echo("| weights | keys and values | perplexity | against float32 | KL, nats a token |")
        click.echo("| --- | --- | --- | --- | --- |")
        for form in FORMS:
            with pyllm.load(source, **({"dtype": "float32"} | form)) as loaded:
                found = drift(loaded, reference, pieces)
                assert found.perplexity is not None
                assert found.reference_perplexity is not None
                name = form.get("quantization") or form["dtype"]
                rise = 100 * (found.perplexity / found.reference_perplexity - 1)
                click.echo(
                    f"| {name} | {loaded.kv_cache} | {found.perplexity:.4f} | {rise:+.3f} % | {found.divergence:.6f} |"
                )
        click.echo(f"\nfloat32: {found.reference_perplexity:.4f}, over {found.tokens} tokens")


if __name__ == "__main__":
    main()
