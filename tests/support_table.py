"""Writes the tables of supported models into README.md, between its markers.

    python tests/support_table.py            writes README.md
    python tests/support_table.py --check    exits with 1 when it is stale

Which types there are is the registry's matter, what kind and which heads they have is asked of the networks that the
toy configurations build, and which tasks go with them of the pipelines; names and notes stand here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import toy_encoders
import toy_models
import toy_seq2seq

from pyllm.errors import UnsupportedModelError
from pyllm.models import REGISTRY, build_network
from pyllm.models.encoders import HEADS
from pyllm.pipelines import TASKS

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- support table: written by tests/support_table.py -->"
END = "<!-- end of the support table -->"


class Row(NamedTuple):
    """Families of one line: their names, model_types, and what is to be known of them."""

    names: str
    types: tuple[str, ...]
    note: str = ""


ROWS = (
    Row("GPT-2, DistilGPT-2", ("gpt2",)),
    Row("GPT-J", ("gptj",)),
    Row("CodeGen", ("codegen",)),
    Row("GPT-Neo", ("gpt_neo",)),
    Row("GPT-NeoX, Pythia", ("gpt_neox",)),
    Row("OPT", ("opt",), "the open GPT-3; 350m's wiring too"),
    Row("BLOOM", ("bloom",), "ALiBi; up to `seq_length`"),
    Row("Falcon", ("falcon",), "7b, 40b, 11b and rw wirings"),
    Row("MPT", ("mpt",), "ALiBi; no `clip_qkv`"),
    Row("SantaCoder, StarCoder", ("gpt_bigcode",), "fill-in-the-middle"),
    Row("StarCoder2", ("starcoder2",), "fill-in-the-middle"),
    Row("Llama 1–3, SmolLM 1–2, Yi, Vicuna", ("llama",), "rope scaling: linear, dynamic, Llama 3, YaRN"),
    Row("SmolLM3", ("smollm3",)),
    Row("Mistral", ("mistral",), "sliding windows"),
    Row("Mixtral", ("mixtral",), "mixture of experts"),
    Row("Qwen2, Qwen2.5", ("qwen2",)),
    Row("Qwen3", ("qwen3",)),
    Row("Qwen-MoE", ("qwen2_moe", "qwen3_moe"), "mixture of experts"),
    Row("Gemma 1–3", ("gemma", "gemma2", "gemma3_text", "gemma3"), "of Gemma 3 the text model"),
    Row("Phi-1, Phi-1.5, Phi-2", ("phi",)),
    Row("Phi-3, Phi-4", ("phi3",), "longrope up to the original context"),
    Row("StableLM", ("stablelm",)),
    Row("OLMo 1–3", ("olmo", "olmo2", "olmo3"), "OLMo 1 without `clip_qkv`"),
    Row("OLMoE", ("olmoe",), "mixture of experts"),
    Row("Granite", ("granite",)),
    Row("Command R", ("cohere", "cohere2")),
    Row("GLM-4", ("glm", "glm4")),
    Row("T5 (1.0, 1.1), FLAN, mT5, UMT5", ("t5", "mt5", "umt5"), "T5EncoderModel as an encoder"),
    Row("BART", ("bart",)),
    Row("PLBART", ("plbart",)),
    Row("mBART, mBART-50", ("mbart",), "`src_lang`, `tgt_lang`"),
    Row("Pegasus", ("pegasus",)),
    Row("Marian (OPUS-MT)", ("marian",)),
    Row("M2M100, NLLB", ("m2m_100",), "`src_lang`, `tgt_lang`; dense models"),
    Row("Blenderbot", ("blenderbot", "blenderbot-small")),
    Row("BERT", ("bert",)),
    Row("RoBERTa, XLM-R, CamemBERT", ("roberta", "xlm-roberta", "camembert")),
    Row("ELECTRA", ("electra",)),
    Row("DistilBERT", ("distilbert",)),
    Row("ALBERT", ("albert",)),
    Row("MPNet", ("mpnet",)),
    Row("ModernBERT", ("modernbert",)),
    Row("DeBERTa v2, v3", ("deberta-v2",), "no convolution (v2-xlarge)"),
)
TITLES = {"decoder": "Decoders", "encoder-decoder": "Encoder–decoders", "encoder": "Encoders"}
HEAD_NAMES = ("masked-lm", "sequence-classification", "token-classification", "question-answering")
SECOND_NAMES = ("sentiment-analysis", "ner")  # of tasks that have another one


def configs() -> dict[str, dict[str, Any]]:
    """A toy config.json for each model_type."""
    found: dict[str, dict[str, Any]] = {}
    for toys in (toy_models.CONFIGS, toy_encoders.ENCODERS, toy_seq2seq.CONFIGS):
        for config in toys.values():
            found.setdefault(config["model_type"], config)
    return found


def heads(config: dict[str, Any]) -> set[str]:
    """Heads that an encoder's family can have."""
    found = {_head({**config, "architectures": [f"Any{ending}"]}) for ending in HEADS}
    return {head for head in found if head is not None}


def _head(config: dict[str, Any]) -> str | None:
    try:
        return build_network(config).head
    except UnsupportedModelError:
        return None


def tasks(kind: str, head: str | None = None) -> list[str]:
    """Tasks for models of a kind: those that need this head."""
    return [
        task
        for task, pipeline in TASKS.items()
        if kind in getattr(pipeline, "KINDS", ("decoder",))
        and getattr(pipeline, "HEAD", None) == head
        and task not in SECOND_NAMES
    ]


def tables() -> str:
    """Everything between the markers."""
    toys = configs()
    named = [name for row in ROWS for name in row.types]
    if sorted(named) != sorted(REGISTRY):
        raise SystemExit(f"rows and registry differ in {sorted(set(named) ^ set(REGISTRY))}: add or drop a row")
    kinds = {name: build_network(toys[name]).kind for name in REGISTRY}
    parts = []
    for kind, title in TITLES.items():
        rows = [row for row in ROWS if kinds[row.types[0]] == kind]
        some = ", ".join(f"`{task}`" for task in tasks(kind))
        if kind == "encoder-decoder":  # where the checkpoint's class is a classifier
            some += "; with a head: " + ", ".join(f"`{task}`" for task in tasks(kind, "sequence-classification"))
        parts.append(f"**{title}** ({sum(len(row.types) for row in rows)} model types): {some}\n")
        parts.append(_encoders(rows, toys) if kind == "encoder" else _plain(rows))
    return "\n".join(parts)


def _plain(rows: list[Row]) -> str:
    lines = [f"| {row.names} | {_types(row)} | {row.note} |" for row in rows]
    return "\n".join(["| Family | `model_type` | |", "| --- | --- | --- |", *lines, ""])


def _encoders(rows: list[Row], toys: dict[str, dict[str, Any]]) -> str:
    columns = [", ".join(f"`{task}`" for task in tasks("encoder", head)) for head in HEAD_NAMES]
    lines = []
    for row in rows:
        has = set.intersection(*(heads(toys[name]) for name in row.types))
        marks = " | ".join("yes" if head in has else "–" for head in HEAD_NAMES)
        lines.append(f"| {row.names} | {_types(row)} | {marks} | {row.note} |")
    head = f"| Family | `model_type` | {' | '.join(columns)} | |"
    return "\n".join([head, "|" + " --- |" * (3 + len(HEAD_NAMES)), *lines, ""])


def _types(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in row.types)


def updated(text: str) -> str:
    """README.md with fresh tables. Raises SystemExit when it has no place for them."""
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"README.md must have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    fresh = updated(text)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md is stale: run python tests/support_table.py" if fresh != text else 0)
    README.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
