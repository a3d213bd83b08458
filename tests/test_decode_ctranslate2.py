"""n-best lists, coverage and alternatives as CTranslate2 gives them, on the logits and attention of a real model that
`make_ctranslate2_fixtures.py` recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Hypothesis, make_policy

Step = Callable[[tuple[int, ...]], tuple[NDArray[np.float32], NDArray[np.float32]]]
START, END = 1, 2  # <s>, </s>


def search(step: Step, vocabulary: list[str], source: int, options: dict[str, Any]) -> list[Hypothesis]:
    """Our search under CTranslate2's options. It stops when it has beam_size results: early_stopping=True."""
    own = dict(options)
    prefix = [vocabulary.index(token) for token in own.pop("target_prefix", [])]
    if own["beam_size"] > 1:
        own["early_stopping"] = True
    built = GenerationOptions.build({"eos_token_id": END}, own)
    policy = make_policy([START, *prefix], built, vocab_size=len(vocabulary), source_ids=[0] * source)
    while not policy.finished:
        rows = [step(tuple(policy.live_tokens(i)[1:])) for i in range(policy.num_live)]
        policy.note_attention(np.stack([attention for _, attention in rows]))
        policy.advance(np.stack([logits for logits, _ in rows]))
    return policy.results()


CONTENT: dict[str, Any] = json.loads((FIXTURES / "ctranslate2" / "cases.json").read_text(encoding="utf-8"))
SOURCES = list(dict.fromkeys(case["source"] for case in CONTENT["cases"]))


@pytest.mark.parametrize("case", CONTENT["cases"], ids=lambda case: json.dumps(case["options"]))
def test_recorded(case: dict[str, Any]) -> None:
    number, vocabulary = SOURCES.index(case["source"]), CONTENT["vocabulary"]
    with np.load(FIXTURES / "ctranslate2" / "steps.npz") as arrays:
        targets = [tuple(json.loads(text)) for text in arrays[f"targets_{number}"].tolist()]
        logits, attention = arrays[f"logits_{number}"], arrays[f"attention_{number}"]
    steps = dict(zip(targets, zip(logits, attention, strict=True), strict=True))
    found = search(lambda target: steps[target], vocabulary, attention.shape[1], case["options"])
    prefix = case["options"].get("target_prefix", [])
    assert [prefix + [vocabulary[token] for token in one.token_ids] for one in found] == case["targets"]
    np.testing.assert_allclose([one.score for one in found], case["scores"], rtol=0, atol=2e-5)
