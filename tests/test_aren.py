"""A real encoder-decoder: Arabic names into Latin letters, converted from CTranslate2's file.

expected.json holds what CTranslate2 itself gives, fixtures/ctranslate2 its n-best lists, coverage and alternatives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aren
import numpy as np
import pytest
from conftest import FIXTURES, data_path
from stepping_seq2seq import outputs_of

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.engine.seq2seq_model import Seq2SeqModel
from pyllm.models import bind, build_network

DATA = "models/aren-transliteration-ct2"
RECORDED: dict[str, Any] = json.loads((FIXTURES / "ctranslate2" / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aren")
    aren.convert(data_path(DATA), path)
    return path


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(data_path(f"{DATA}/expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Seq2SeqModel]:
    pytest.importorskip("pyllm._C")
    with pyllm.load(folder) as loaded:
        assert isinstance(loaded, Seq2SeqModel)
        yield loaded


def words_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])


def test_the_reference_gives_the_recorded_scores(folder: Path, expected: dict[str, Any]) -> None:
    words, checkpoint = words_of(folder), open_checkpoint(folder)
    network = build_network(checkpoint.config)
    runner = ReferenceRunner(network, bind(network, checkpoint))
    assert expected["score"]
    for case in expected["score"]:
        source, target = ([words.index(word) for word in case[side].split()] for side in ("source", "target"))
        logits = outputs_of(runner, source, [aren.START, *target]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        found = logprobs[np.arange(len(logits)), [*target, aren.END]]
        np.testing.assert_allclose(found, case["token_log_probs_incl_eos"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_translations(model: Seq2SeqModel, expected: dict[str, Any], num_beams: int) -> None:
    """From text to text, alone and together."""
    sources = [case["source"] for case in expected["translate"]]
    targets = [case["greedy_and_beam4"] for case in expected["translate"]]
    assert sources
    assert [model.generate(source, num_beams=num_beams).text for source in sources] == targets
    assert [result.text for result in model.generate(sources, num_beams=num_beams)] == targets


def test_scores(model: Seq2SeqModel, folder: Path, expected: dict[str, Any]) -> None:
    words = words_of(folder)
    for case in expected["score"]:
        target = [words.index(word) for word in [*case["target"].split(), "</s>"]]
        score = model.score(case["source"], target)
        assert not isinstance(score, list)
        np.testing.assert_allclose(score.logprobs, case["token_log_probs_incl_eos"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['source']} {json.dumps(case['options'])}")
def test_searches_of_ctranslate2(model: Seq2SeqModel, folder: Path, case: dict[str, Any]) -> None:
    """Its options by its own names, target_prefix as text. It stops at beam_size results: early_stopping."""
    words, options = words_of(folder), dict(case["options"])
    prefix = options.get("target_prefix", [])
    if prefix:
        options["target_prefix"] = " ".join(prefix)
    if options["beam_size"] > 1:
        options["early_stopping"] = True
    result = model.generate(case["source"], **options)
    assert not isinstance(result, list)
    found = [prefix + [words[token] for token in sequence.token_ids] for sequence in result.sequences]
    assert found == case["targets"]
    scores = np.array([sequence.score for sequence in result.sequences], float)
    np.testing.assert_allclose(scores, case["scores"], rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_folder_alike(model: Seq2SeqModel, folder: Path, expected: dict[str, Any]) -> None:
    """The conversion is a checkpoint like any other: the same logits there."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = words_of(folder)
    for case in expected["score"]:
        source, target = ([words.index(word) for word in case[side].split()] for side in ("source", "target"))
        decoder = [aren.START, *target]
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([decoder])).logits[0]
        np.testing.assert_allclose(model.logits(decoder, source=source), logits.numpy(), rtol=0, atol=1e-4)
