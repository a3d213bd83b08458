"""Names and probabilities of a classifier's labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidConfigError

Floats = NDArray[np.float64]

FUNCTIONS = ("default", "sigmoid", "softmax", "none")


def softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.floating[Any]]) -> Floats:
    """Of each logit, in float64, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))))


def id2label(config: Mapping[str, Any], count: int) -> dict[int, str]:
    """Label of each of `count` outputs: config.json's id2label, else LABEL_0 and so on. Raises InvalidConfigError."""
    given = config.get("id2label") or {}
    if not isinstance(given, Mapping) or not all(str(key).isdecimal() for key in given):
        raise InvalidConfigError(f"[config.json] id2label must map numbers to labels, got {given!r:.80}; correct it")
    named = {int(key): str(label) for key, label in given.items()}
    return {index: named.get(index, f"LABEL_{index}") for index in range(count)}


def label2id(config: Mapping[str, Any], count: int) -> dict[str, int]:
    """Output of each label: config.json's label2id, else id2label the other way round. Raises InvalidConfigError."""
    given = config.get("label2id")
    if given is None:
        return {label: index for index, label in id2label(config, count).items()}
    fits = isinstance(given, Mapping) and all(type(index) is int and 0 <= index < count for index in given.values())
    if not fits:
        raise InvalidConfigError(
            f"[config.json] label2id must map labels to numbers from 0 to {count - 1}, got {given!r:.80}; correct it"
        )
    return {str(label): index for label, index in given.items()}


def default_function(config: Mapping[str, Any], count: int) -> str:
    """What turns a text classifier's logits into scores: nothing for regression, a sigmoid for one label or several
    that may be true together, else a softmax (transformers' rule)."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"


def apply(function: str, logits: NDArray[np.floating[Any]]) -> Floats:
    """Scores of one text's logits [labels]."""
    if function == "none":
        return logits.astype(np.float64)
    return sigmoid(logits) if function == "sigmoid" else softmax(logits)
