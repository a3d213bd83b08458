"""Whether a loaded model is one that a task can use, and saying what is wrong otherwise."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError

# What transformers calls classes of these kinds and heads.
CLASSES = {
    "decoder": "...ForCausalLM",
    "encoder-decoder": "...ForConditionalGeneration",
    "masked-lm": "...ForMaskedLM",
    "sequence-classification": "...ForSequenceClassification",
    "token-classification": "...ForTokenClassification",
    "question-answering": "...ForQuestionAnswering",
}


def require(task: str, model: Any, kinds: tuple[str, ...], head: str | None = None) -> None:
    """Raises UnsupportedModelError, naming the task, what it needs and what the model is."""
    network = getattr(model, "network", None)
    kind = getattr(network, "kind", None)
    if kind in kinds and (head is None or network.head == head):  # type: ignore[union-attr]
        return
    needed = " or ".join(f"an {kind}" if kind[0] == "e" else f"a {kind}" for kind in kinds)
    example = CLASSES.get(head or kinds[0])
    needed += (f" with a {head} head" if head else "") + (f" ({example})" if example else "")
    raise UnsupportedModelError(
        f"[pipeline] {task} needs {needed}, got {_described(model)}; load a checkpoint of that kind"
    )


def _described(model: Any) -> str:
    network = getattr(model, "network", None)
    if network is None:
        return f"a {type(model).__name__}"
    architectures = model.config.get("architectures") or [network.family]
    head = f"a {network.head} head" if network.head else "no head"
    return f"{architectures[0]}: {network.kind}" + (f" with {head}" if network.kind == "encoder" else "")
