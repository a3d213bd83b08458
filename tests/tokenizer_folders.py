"""Tokenizer folders of every family, made of the real vocabularies of the test data and small config files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import data_path

# What a folder is made of: file -> content, tokenizer_config.json, config.json.
Parts = tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]
UNIGRAM = "sentencepiece-unigram-1k/test_sentencepiece.model"
BPE = "sentencepiece-bpe-1k/test_sentencepiece_bpe.model"
CONTROL, UNKNOWN = 3, 2  # kinds of pieces in SentencePiece's model file


def real(name: str) -> bytes:
    return data_path(f"tokenizers/{name}").read_bytes()


def piece_model(name: str, first: list[tuple[str, int]]) -> bytes:
    """A SentencePiece model whose first three pieces (<unk>, <s>, </s>) are replaced by these (piece, kind)."""
    pytest.importorskip("google.protobuf", reason="could not import 'transformers' and what it needs")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(real(name))
    rest = list(model.pieces)[3:]
    copies = [(piece.piece, piece.score, piece.type) for piece in rest]
    del model.pieces[:]
    for piece, score, kind in [*((piece, 0.0, kind) for piece, kind in first), *copies]:
        model.pieces.add(piece=piece, score=score, type=kind)
    names = [piece for piece, kind in first]
    unknown = [kind for _, kind in first].index(UNKNOWN)
    spec = model.trainer_spec
    spec.unk_id, spec.unk_piece = unknown, names[unknown]
    spec.bos_id = spec.eos_id = spec.pad_id = -1
    return bytes(model.SerializeToString())


def t5_model() -> bytes:
    return piece_model(UNIGRAM, [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)])


def albert_model() -> bytes:
    specials = [("<pad>", CONTROL), ("<unk>", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[MASK]", CONTROL)]
    return piece_model(UNIGRAM, specials)


def deberta_model() -> bytes:
    return piece_model(UNIGRAM, [("[PAD]", CONTROL), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[UNK]", UNKNOWN)])


def byte_level(first: list[str], last: str) -> dict[str, bytes]:
    """GPT-2's vocabulary with these tokens at its front and its end."""
    vocabulary = json.loads(real("gpt2/vocab.json"))
    tokens = dict.fromkeys([*first, *sorted(vocabulary, key=vocabulary.__getitem__), last])
    ids = {token: id for id, token in enumerate(tokens)}
    return {"vocab.json": json.dumps(ids).encode(), "merges.txt": real("gpt2/merges.txt")}


def gpt2() -> dict[str, bytes]:
    return {name: real(f"gpt2/{name}") for name in ("vocab.json", "merges.txt")}


def roberta() -> dict[str, bytes]:
    return byte_level(["<s>", "<pad>", "</s>", "<unk>"], "<mask>")


def mpnet_vocabulary() -> bytes:
    lines = real("bert-base-uncased/vocab.txt").decode().split("\n")
    words = [line for line in lines if line not in ("", "[PAD]", "[CLS]", "[SEP]", "[MASK]")]
    return "\n".join(["<s>", "<pad>", "</s>", "<unk>", *words[:6000], "<mask>", ""]).encode()


def m2m100() -> dict[str, bytes]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=real(BPE))
    pieces = [model.id_to_piece(id) for id in range(3, model.get_piece_size())]
    ids = {piece: id for id, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    return {"sentencepiece.bpe.model": real(BPE), "vocab.json": json.dumps(ids).encode()}


def _class(name: str, **settings: Any) -> dict[str, Any]:
    return {"tokenizer_class": name, **settings}


def _opt() -> dict[str, Any]:
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    return _class("GPT2Tokenizer", **tokens, pad_token="<pad>", add_bos_token=True)


def _bert() -> dict[str, bytes]:
    return {"vocab.txt": real("bert-base-uncased/vocab.txt")}


def _marian() -> Parts:
    files = {name: real(f"marian-en-pt/{name}") for name in ("source.spm", "target.spm", "vocab.json")}
    return files, json.loads(real("marian-en-pt/tokenizer_config.json")), {"model_type": "marian"}


def _m2m100() -> Parts:
    codes = [f"__{code}__" for code in _all_m2m100_codes()]
    config = _class("M2M100Tokenizer", src_lang="en", tgt_lang="fr", additional_special_tokens=codes)
    return m2m100(), config, {"model_type": "m2m_100"}


def _all_m2m100_codes() -> list[str]:
    from pyllm.tokenization.languages import CODES

    return CODES["M2M100Tokenizer"]


def _spm(file: str, model: Callable[[], bytes], name: str, model_type: str) -> Callable[[], Parts]:
    return lambda: ({file: model()}, _class(name), {"model_type": model_type})


def _unigram() -> bytes:
    return real(UNIGRAM)


FAIRSEQ_FILE = "sentencepiece.bpe.model"
FAMILIES: dict[str, Callable[[], Parts]] = {
    "bert": lambda: (_bert(), _class("BertTokenizer"), {"model_type": "bert"}),
    "bert-cased": lambda: (
        _bert(),
        _class("BertTokenizer", do_lower_case=False, tokenize_chinese_chars=False, strip_accents=True),
        {"model_type": "bert"},
    ),
    "distilbert": lambda: (_bert(), {}, {"model_type": "distilbert"}),
    "electra": lambda: (_bert(), _class("ElectraTokenizer"), {"model_type": "electra"}),
    "mpnet": lambda: ({"vocab.txt": mpnet_vocabulary()}, _class("MPNetTokenizer"), {"model_type": "mpnet"}),
    "gpt2": lambda: (gpt2(), _class("GPT2Tokenizer"), {"model_type": "gpt2"}),
    "gpt-neox": lambda: (gpt2(), _class("GPTNeoXTokenizer", pad_token=None), {"model_type": "gpt_neox"}),
    "codegen": lambda: (gpt2(), _class("CodeGenTokenizer"), {"model_type": "codegen"}),
    "opt": lambda: (roberta(), _opt(), {"model_type": "opt"}),
    "roberta": lambda: (roberta(), _class("RobertaTokenizer"), {"model_type": "roberta"}),
    "bart": lambda: (roberta(), _class("BartTokenizer"), {"model_type": "bart"}),
    "blenderbot": lambda: (roberta(), _class("BlenderbotTokenizer"), {"model_type": "blenderbot"}),
    "t5": _spm("spiece.model", t5_model, "T5Tokenizer", "t5"),
    "albert": _spm("spiece.model", albert_model, "AlbertTokenizer", "albert"),
    "xlm-roberta": _spm(FAIRSEQ_FILE, _unigram, "XLMRobertaTokenizer", "xlm-roberta"),
    "camembert": _spm(FAIRSEQ_FILE, _unigram, "CamembertTokenizer", "camembert"),
    "deberta-v2": _spm("spm.model", deberta_model, "DebertaV2Tokenizer", "deberta-v2"),
    "pegasus": _spm("spiece.model", t5_model, "PegasusTokenizer", "pegasus"),
    "mbart": _spm(FAIRSEQ_FILE, _unigram, "MBartTokenizer", "mbart"),
    "mbart50": _spm(FAIRSEQ_FILE, _unigram, "MBart50Tokenizer", "mbart"),
    "nllb": _spm(FAIRSEQ_FILE, lambda: real(BPE), "NllbTokenizer", "m2m_100"),
    "gemma": _spm("tokenizer.model", lambda: real(BPE), "GemmaTokenizer", "gemma"),
    "marian": _marian,
    "m2m100": _m2m100,
}


def write_folder(folder: Path, parts: Parts) -> Path:
    """The folder with these files."""
    files, tokenizer_config, config = parts
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
