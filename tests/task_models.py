"""Toy encoders with tokenizers, written into a folder: what the recorded pipelines ran on. Needs NumPy only.

Weights come from NumPy's legacy generator, whose numbers never change, so that folders need not be stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

HIDDEN, LAYERS, FEED_FORWARD = 32, 2, 48
NER = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NLI = ("contradiction", "neutral", "entailment")
_WORDS = """
the of and to in a is was for on as by with he at from his an that it which are were be has had this not or but who what
when where how many did does one two first time year name city team game war people world part new state their they its
also after over into between during under more most other some than then there these can could would about only all such
no may our out up you we she her him them said made used known called work paris london river king cat dog tree house
water light long old small great good bad red blue
"""
_ENDINGS = "s ed ing er ly ion al est ity ness able ment tion ous ive ty en th"
WORDS, ENDINGS = _WORDS.split(), _ENDINGS.split()

# name -> (architecture's suffix, outputs and more of config.json)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "question-answering": ("ForQuestionAnswering", {}),
    "masked-lm": ("ForMaskedLM", {}),
    "token-classification": ("ForTokenClassification", {"labels": NER}),
    "nli": ("ForSequenceClassification", {"labels": NLI}),
    "sentiment": ("ForSequenceClassification", {"labels": ("NEGATIVE", "POSITIVE")}),
    "topics": (
        "ForSequenceClassification",
        {"labels": ("a", "b", "c", "d"), "problem_type": "multi_label_classification"},
    ),
    "rating": ("ForSequenceClassification", {"labels": ("LABEL_0",), "problem_type": "regression"}),
    "base": ("Model", {}),
}


def write_folder(folder: Path, family: str, head: str) -> Path:
    """A "bert" or "roberta" with one of HEADS, as save_pretrained would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    length = 384 if head == "question-answering" else 128
    vocabulary = _write_wordpieces(folder, length) if family == "bert" else _write_byte_pairs(folder, length)
    suffix, extra = HEADS[head]
    labels = extra.get("labels", ())
    config = {
        "model_type": family,
        "architectures": [("Bert" if family == "bert" else "Roberta") + suffix],
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": length if family == "bert" else length + 2,
        "type_vocab_size": 2 if family == "bert" else 1,
        "layer_norm_eps": 1e-12 if family == "bert" else 1e-5,
        "pad_token_id": 0 if family == "bert" else 1,
        "torch_dtype": "float32",
        **{key: value for key, value in extra.items() if key != "labels"},
    }
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    seed = sum(map(ord, family + head))
    _save(
        folder / "model.safetensors",
        _tensors(np.random.RandomState(seed), family, suffix, vocabulary, length, len(labels)),
    )
    return folder


def _tensors(
    random: np.random.RandomState, family: str, suffix: str, vocabulary: int, length: int, labels: int
) -> Tensors:
    tensors: Tensors = {}

    def linear(name: str, outputs: int, inputs: int, gain: float = 1.5) -> None:
        tensors[f"{name}.weight"] = gain * random.standard_normal((outputs, inputs)) / inputs**0.5
        tensors[f"{name}.bias"] = 0.3 * random.standard_normal(outputs)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + 0.2 * random.standard_normal(HIDDEN)
        tensors[f"{name}.bias"] = 0.3 * random.standard_normal(HIDDEN)

    prefix = "" if suffix == "Model" else f"{family}."
    rows = {"word": vocabulary, "position": length + 2 * (family == "roberta"), "token_type": 1 + (family == "bert")}
    for name, count in rows.items():
        tensors[f"{prefix}embeddings.{name}_embeddings.weight"] = 0.5 * random.standard_normal((count, HIDDEN))
    norm(f"{prefix}embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"{prefix}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", FEED_FORWARD, HIDDEN)
        linear(f"{layer}.output.dense", HIDDEN, FEED_FORWARD)
        norm(f"{layer}.output.LayerNorm")
    if suffix == "ForQuestionAnswering":
        linear("qa_outputs", 2, HIDDEN, 3.0)
    elif suffix == "ForTokenClassification":
        linear("classifier", labels, HIDDEN, 3.0)
    elif suffix == "ForMaskedLM":
        names = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
        dense, layer_norm, bias = names if family == "bert" else ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
        linear(dense, HIDDEN, HIDDEN)
        norm(layer_norm)
        tensors[bias] = 0.3 * random.standard_normal(vocabulary)
    elif suffix == "ForSequenceClassification" and family == "bert":
        linear("bert.pooler.dense", HIDDEN, HIDDEN)
        linear("classifier", labels, HIDDEN)
    elif suffix == "ForSequenceClassification":
        linear("classifier.dense", HIDDEN, HIDDEN)
        linear("classifier.out_proj", labels, HIDDEN)
    elif family == "bert":
        linear("pooler.dense", HIDDEN, HIDDEN)
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def _write_wordpieces(folder: Path, length: int) -> int:
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *WORDS]
    tokens += ["##" + each for each in (*"abcdefghijklmnopqrstuvwxyz0123456789", *ENDINGS)]
    tokens = list(dict.fromkeys(tokens))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": length}
    settings["clean_up_tokenization_spaces"] = True  # transformers 4 does it by default, 5 does not
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def _write_byte_pairs(folder: Path, length: int) -> int:
    """Bytes, and every beginning of a space and a word of WORDS."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    merges: dict[tuple[str, str], None] = {}
    for word in (*("\u0120" + word for word in WORDS), *ENDINGS):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in merges), "<mask>"]
    tokens = list(dict.fromkeys(tokens))
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def _save(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [begin, begin + values.nbytes]}
        begin += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(v.tobytes() for v in tensors.values()))
