"""Encoder-decoders through the public API give the tokens and scores of transformers, recorded and live. float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import recorded_cases, toy_folder
from toy_seq2seq import CONFIGS, GENERATING, GENERATION, SEARCH_MODELS

import pyllm
from pyllm.engine.seq2seq_model import Seq2SeqModel

pytest.importorskip("pyllm._C")

Load = Callable[[str], Seq2SeqModel]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Toy models, each loaded once, without their generation_config.json."""
    loaded: dict[str, Seq2SeqModel] = {}

    def get(name: str) -> Seq2SeqModel:
        if name not in loaded:
            model = pyllm.load(toy_folder(name), dtype="float32")
            assert isinstance(model, Seq2SeqModel)
            model.generation_config = {}
            loaded[name] = model
        return loaded[name]

    yield get
    for model in loaded.values():
        model.close()


def assert_same(result: Any, token_ids: list[list[int]], scores: list[float] | None) -> None:
    assert [sequence.token_ids for sequence in result.sequences] == token_ids
    if scores is not None:
        found = [sequence.score for sequence in result.sequences]
        np.testing.assert_allclose(np.array(found, float), scores, rtol=0, atol=1e-4)


CASES = [pytest.param(name, case, id=f"{name}: {case['name']}") for name in GENERATING for case in recorded_cases(name)]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_recorded(load: Load, name: str, case: dict[str, Any]) -> None:
    assert_same(load(name).generate(case["source"], **case["options"]), case["token_ids"], case["scores"])


@pytest.mark.parametrize("name", SEARCH_MODELS)
def test_a_batch_gives_what_single_sources_give(load: Load, name: str) -> None:
    model = load(name)
    sources = [case["source"] for case in recorded_cases(name)[2:6]]
    base = {"num_beams": 3, "max_new_tokens": 12, "num_return_sequences": 3}
    for result, source in zip(model.generate(sources, **base), sources, strict=True):
        single = model.generate(source, **base)
        assert [sequence.token_ids for sequence in result.sequences] == [s.token_ids for s in single.sequences]
        scores = [sequence.score for sequence in result.sequences]
        tested_device.assert_same_numbers(scores, [sequence.score for sequence in single.sequences])


def live(name: str) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(toy_folder(name), dtype=torch.float32).eval()


def sources_of(name: str) -> list[list[int]]:
    random = np.random.default_rng(11)
    end = CONFIGS[name]["eos_token_id"]
    return [[*random.integers(3, 95, size=size).tolist(), end] for size in (2, 9, 31, 45)]


def until_end(tokens: list[int], end: int) -> list[int]:
    """transformers begins with the start token, and pads what is shorter than the longest."""
    tokens = tokens[1:]
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GENERATION)
def test_generation_config_is_applied_live(name: str) -> None:
    """Loaded and called with nothing but a source, as users do."""
    torch = pytest.importorskip("torch")
    theirs = live(name)
    with pyllm.load(toy_folder(name), dtype="float32") as ours:
        for source in sources_of(name):
            ids = torch.tensor([source])
            more = {"forced_bos_token_id": 50} if name == "m2m_100" else {}  # what tgt_lang sets
            expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **more)[0].tolist()
            assert ours.generate(source, **more).token_ids == until_end(expected, CONFIGS[name]["eos_token_id"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GENERATING)
def test_live(load: Load, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, ours, config = live(name), load(name), CONFIGS[name]
    theirs.generation_config = transformers.GenerationConfig()
    special = {key: config[key] for key in ("decoder_start_token_id", "pad_token_id", "eos_token_id")}
    for source in sources_of(name):
        ids = torch.tensor([source])
        for beams in (1, 4):
            options = special | {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 12}
            chosen = transformers.GenerationConfig(**options, return_dict_in_generate=True, output_scores=True)
            output = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=chosen)
            tokens = [until_end(sequence, config["eos_token_id"]) for sequence in output.sequences.tolist()]
            scores = output.sequences_scores.tolist() if beams > 1 else None
            assert_same(ours.generate(source, **options), tokens, scores)


def test_logits_and_encode(load: Load) -> None:
    """The two other calls of the model, against what was recorded."""
    model = load("bart")
    with np.load(toy_folder("bart") / "logits.npz") as arrays:
        for index in range(4):
            source, decoder = arrays[f"source_{index}"].tolist(), arrays[f"decoder_{index}"].tolist()
            found = model.logits(decoder, source=source)
            np.testing.assert_allclose(found, arrays[f"logits_{index}"], rtol=0, atol=1e-4)
            np.testing.assert_allclose(model.encode(source), arrays[f"encoded_{index}"], rtol=0, atol=1e-4)


def test_options_of_old_configurations(tmp_path: Path) -> None:
    """Without generation_config.json, config.json's generation options count, as in files before transformers 4.25."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((toy_folder("bart") / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | GENERATION["bart"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pyllm.load(tmp_path) as old, pyllm.load(toy_folder("bart")) as new:
        for source in sources_of("bart"):
            assert old.generate(source).token_ids == new.generate(source).token_ids


def test_a_classifier_gives_logits_and_writes_nothing(load: Load) -> None:
    """BartForSequenceClassification: the decoder reads the text again, the row of its last token is the result."""
    model, start = load("bart-mnli"), CONFIGS["bart-mnli"]["decoder_start_token_id"]
    assert model.network.head == "sequence-classification"
    with np.load(toy_folder("bart-mnli") / "logits.npz") as arrays:
        for index in range(4):
            source = arrays[f"source_{index}"].tolist()
            found = model.logits([start, *source[:-1]], source=source)[-1]
            np.testing.assert_allclose(found, arrays[f"logits_{index}"], rtol=0, atol=1e-4)
    with pytest.raises(pyllm.errors.UnsupportedModelError, match="sequence-classification"):
        model.generate([5, 2], max_new_tokens=3)
