"""Greedy and beam search through the public API give transformers' tokens and scores, recorded and live.

float32. The filters' and searches' own tests are elsewhere; this is the whole way from a checkpoint to token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, recorded_cases, toy_folder
from toy_models import CONFIGS, SEARCH_MODELS

import pyllm
from pyllm.errors import ContextLengthError

Load = Callable[[str], pyllm.LanguageModel]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Toy models in float32, each loaded once, without the end tokens of their generation_config.json."""
    loaded: dict[str, pyllm.LanguageModel] = {}

    def get(name: str) -> pyllm.LanguageModel:
        if name not in loaded:
            loaded[name] = pyllm.load(toy_folder(name), dtype="float32")
            loaded[name].generation_config = {}
        return loaded[name]

    yield get
    for model in loaded.values():
        model.close()


def assert_same(result: pyllm.Generation, token_ids: list[list[int]], scores: list[float] | None) -> None:
    assert [sequence.token_ids for sequence in result.sequences] == token_ids
    if scores is not None:
        found = [sequence.score for sequence in result.sequences]
        np.testing.assert_allclose(np.array(found, float), scores, rtol=1e-6, atol=1e-4)  # rtol: sums are float32


CASES = [
    pytest.param(name, case, id=f"{name}: {case['name']}")
    for name in CONFIGS
    for file in ("generation.json", "group_beams.json")
    if (FIXTURES / name / file).exists()
    for case in recorded_cases(name, file)
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_recorded(load: Load, name: str, case: dict[str, Any]) -> None:
    model = load(name)
    if len(case["prompt"]) + case["options"].get("max_new_tokens", 0) > model.max_positions:
        with pytest.raises(ContextLengthError):  # transformers' dynamic rope goes on past max_position_embeddings
            model.generate(case["prompt"], **case["options"])
        return
    result = model.generate(case["prompt"], **case["options"])
    assert isinstance(result, pyllm.Generation)
    assert_same(result, case["token_ids"], case["scores"])


LIVE = [
    {"max_new_tokens": 30},
    {"max_new_tokens": 20, "num_beams": 4, "num_return_sequences": 4},
    {"max_new_tokens": 20, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0, "eos_token_id": [7, 20, 55]},
    {"max_new_tokens": 20, "num_beams": 5, "early_stopping": "never", "eos_token_id": [9, 11, 30, 64, 90]},
    {"max_new_tokens": 16, "num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
]


# A toy of each other model_type, and the calls it is asked for: greedy, and four beams.
OTHERS = {config["model_type"]: name for name, config in reversed(CONFIGS.items()) if name not in SEARCH_MODELS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "calls"), [(name, LIVE) for name in SEARCH_MODELS] + [(name, LIVE[:2]) for name in OTHERS.values()]
)
def test_live(load: Load, name: str, calls: list[dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # a step takes microseconds; waking threads takes longer
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(toy_folder(name), dtype=torch.float32).eval()
    ours = load(name)
    draw = np.random.RandomState(7)
    for options in calls:
        theirs.generation_config = transformers.GenerationConfig()
        room = min(40, ours.max_positions - options["max_new_tokens"])
        prompt = draw.randint(3, 128, size=draw.randint(1, room)).tolist()
        config = transformers.GenerationConfig(
            **options, pad_token_id=0, return_dict_in_generate=True, output_scores=True
        )
        ids = torch.tensor([prompt])
        output = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        ends = options.get("eos_token_id", [])
        token_ids = [until_end(row[len(prompt) :], ends) for row in output.sequences.tolist()]
        scores = output.sequences_scores.tolist() if options.get("num_beams", 1) > 1 else None
        result = ours.generate(prompt, **options)
        assert isinstance(result, pyllm.Generation)
        assert_same(result, token_ids, scores)


def until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """transformers pads what is shorter than the longest."""
    stops = [index for index, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0] + 1] if stops else tokens


def test_live_pipeline() -> None:
    """From text to text, tokenizer included, in the shapes of transformers' pipeline."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    texts = ["The quick brown fox jumps over the lazy", "It was"]
    folder = str(pyllm.default_model())
    theirs = transformers.pipeline("text-generation", model=folder, dtype=torch.float32, device="cpu")
    ours = pyllm.pipeline("text-generation", folder, dtype="float32")
    for options in (
        {"do_sample": False, "max_new_tokens": 24},
        {"do_sample": False, "max_length": 30, "num_beams": 3, "num_return_sequences": 2, "return_full_text": False},
    ):
        assert ours(texts, **options) == theirs(texts, **options)
        assert ours(texts[0], **options) == theirs(texts[0], **options)
