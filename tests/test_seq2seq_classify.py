"""Zero-shot and text classification with an encoder-decoder (BART trained on inference), against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import toy_folder

import pyllm
from pyllm.errors import NumericError

pytest.importorskip("pyllm._C")

WORDS = ["<s>", "<pad>", "</s>", "ships", "sail", "the", "deep", "sea", "while", "birds", "cross", "a", "wide", "sky"]
WORDS += ["this", "text", "is", "about", "."]
TEXTS = ["ships sail the deep sea .", "birds cross a wide sky while ships sail ."]
LABELS = ["sea", "sky", "ships"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy classifier with a tokenizer of a few words, pairs joined as RoBERTa's and BART's are."""
    path = tmp_path_factory.mktemp("mnli")
    shutil.copytree(toy_folder("bart-mnli"), path, dirs_exist_ok=True)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": word, **special} for id, word in enumerate(WORDS[:3])],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first, end],
            "pair": [begin, first, end, end, second, end],
            "special_tokens": {
                word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("<s>", "</s>")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: id for id, word in enumerate(WORDS)}, "unk_token": "<pad>"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 60, **names})
    )
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_equals_transformers(folder: Path, multi_label: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    template = "this text is about {} ."
    theirs = transformers.pipeline("zero-shot-classification", str(folder), dtype=torch.float32, device="cpu")
    ours = pyllm.pipeline("zero-shot-classification", folder, dtype="float32")
    options = {"hypothesis_template": template, "multi_label": multi_label}
    expected, found = theirs(TEXTS, LABELS, **options), ours(TEXTS, LABELS, **options)
    for one, other in zip(found, expected, strict=True):
        assert one["labels"] == other["labels"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_text_classification_equals_transformers(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    theirs = transformers.pipeline("text-classification", str(folder), dtype=torch.float32, device="cpu")
    expected = theirs(TEXTS, top_k=None)
    found = pyllm.pipeline("text-classification", folder, dtype="float32")(TEXTS, top_k=None)
    for ours, their in zip(found, expected, strict=True):
        assert [each["label"] for each in ours] == [each["label"] for each in their]
        np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in their], rtol=0, atol=1e-5)


def test_damaged_weights_are_reported(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    head = next(header[name] for name in header if name.endswith("classification_head.out_proj.weight"))
    assert head["dtype"] == "BF16"
    first, last = head["data_offsets"]
    content[begin + first : begin + last] = b"\x80\x7f" * ((last - first) // 2)  # infinity
    (damaged / "model.safetensors").write_bytes(content)
    classifier = pyllm.pipeline("text-classification", model=damaged, num_threads=1)
    with pytest.raises(NumericError, match="finite"):
        classifier(TEXTS[0])
