"""Tokenizers: ids equal llama.cpp's recorded and transformers' live ones; detokenised pieces equal the whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from conftest import data_path
from tokenizers import decoders, models

from pyllm.errors import TokenizerError
from pyllm.tokenization import Tokenizer, load_tokenizer

DEFAULT_MODEL = Path(__file__).parent.parent / "pyllm" / "assets" / "default-model"
# Kind -> (real tokenizer folder, files taken from it, config.json).
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "gpt2": ("gpt2", ("vocab.json", "merges.txt"), {"model_type": "gpt2"}),
    "qwen2": ("qwen2", ("vocab.json", "merges.txt", "tokenizer_config.json"), {"model_type": "qwen2"}),
    "llama-json": (
        "llama-2",
        ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        {"model_type": "llama"},
    ),
    "llama-spm": (
        "llama-2",
        ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
        {"model_type": "llama"},
    ),
}
EXPECTED = {"gpt2": "gpt-2", "qwen2": "qwen2", "llama-json": "llama-spm", "llama-spm": "llama-spm"}

NASTY = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \t\r\n",
    "Hello",
    " Hello  world ",
    "don't DON'T we'Ll I'D",
    "3.14159 1,000,000 ²½Ⅷ",
    "café cafe\u0301 \ufb01ne",
    "🦙 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪",
    "我想在apple工作1314151天～",
    "שלום עולם مرحبا بالعالم",
    "កាន់តែពិសេស អាច",
    "\u200b\u200d\u2028\u2029\u00a0\u3000\ufeff",
    "\x00\x01\x1b\x7f\x85",
    "a\u2581b \u2581\u2581c",
    "\U0010ffff\ufffd\ue000",
    "x" * 5000,
    "ab " * 2000,
    "!?" * 300 + "\n" * 50,
    "<0x0A><0xFF> <unk",
]
SPECIAL = [
    "<s>Hello</s> world",
    "a<s><s> b </s>",
    "<|endoftext|>",
    "x<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start <unk> |im_end|>",
]


def folder_of(kind: str, root: Path) -> Path:
    """A model folder of this kind under `root`, made of real files."""
    source, files, config = KINDS[kind]
    folder = root / kind
    folder.mkdir(exist_ok=True)
    for file in files:
        shutil.copy(data_path(f"tokenizers/{source}") / file, folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tokenizers")

    @cache
    def load_kind(kind: str) -> tuple[Tokenizer, Path]:
        folder = folder_of(kind, root)
        return load_tokenizer(folder, KINDS[kind][2]), folder

    return load_kind


def pieces(tokenizer: Tokenizer, ids: list[int], **options: Any) -> str:
    detokenizer = tokenizer.detokenizer(**options)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_expectations(load: Any, kind: str) -> None:
    tokenizer, _ = load(kind)
    recorded = data_path("tokenizers/llama.cpp-expected") / f"ggml-vocab-{EXPECTED[kind]}.gguf"
    texts = Path(f"{recorded}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{recorded}.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == [int(id) for id in line.split()], text
        assert tokenizer.decode(ids) == text
        assert pieces(tokenizer, ids) == text


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    alphabets = ["abc eE", "  \n\t", "éß漢字🦙", "0123.,'", "אבג", "\u0301\u200d\x00\x7f", "<s>|/im_", "\u2581"]
    return ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "llama-json"])
def test_equal_to_transformers(load: Any, kind: str) -> None:
    """Llama: transformers 5 drops a leading space that SentencePiece and the recorded ids keep; not compared."""
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer, folder = load(kind)
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    for text in NASTY + SPECIAL + random_texts(600, seed=3):
        if kind == "llama-json" and text.startswith((" ", "\u2581")):
            continue
        for add in (True, False):
            ids = oracle.encode(text, add_special_tokens=add)
            assert tokenizer.encode(text, add_special_tokens=add) == ids, text
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)
    for name in ("bos", "eos", "pad", "unk"):
        if getattr(oracle, f"{name}_token") is not None:
            assert getattr(tokenizer, f"{name}_token_id") == getattr(oracle, f"{name}_token_id")
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.special_ids == set(oracle.all_special_ids)


def test_llama_files_agree(load: Any) -> None:
    """tokenizer.model, tokenizer.json and SentencePiece itself give the same ids."""
    (spm, folder), (fast, _) = load("llama-spm"), load("llama-json")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in NASTY + SPECIAL + random_texts(1500, seed=4):
        ids = spm.encode(text)
        assert fast.encode(text) == ids, text
        for skip in (True, False):
            assert spm.decode(ids, skip_special_tokens=skip) == fast.decode(ids, skip_special_tokens=skip)
        if not any(token in text for token in ("<s>", "</s>", "<unk>")):
            assert ids == [1, *reference.encode(text)]
            assert spm.decode(ids) == text.replace("\u2581", " ")


def test_tokenizer_json_as_it_is() -> None:
    """Without a tokenizer class in the way, tokenizer.json means what the `tokenizers` library makes of it."""
    tokenizer = load_tokenizer(DEFAULT_MODEL, {})
    oracle = tokenizers.Tokenizer.from_file(str(DEFAULT_MODEL / "tokenizer.json"))
    for text in NASTY + SPECIAL + random_texts(300, seed=5):
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_equal_the_whole(load: Any, kind: str, skip: bool) -> None:
    """For any ids, also those that spell broken UTF-8; and no piece is ever broken itself."""
    tokenizer, _ = load(kind)
    rng = random.Random(11)
    bytes_and_specials = [*range(300), *tokenizer.special_ids]
    for _ in range(1500):
        pool = bytes_and_specials if rng.random() < 0.6 else range(tokenizer.vocab_size)
        ids = [rng.choice(pool) for _ in range(rng.randint(0, 24))]
        assert pieces(tokenizer, ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_after_a_prompt(load: Any, kind: str) -> None:
    tokenizer, _ = load(kind)
    for prompt, text in [("Once upon", " a time"), ("A line\n", "🦙 next"), ("ab", "cd"), ("", "x y"), ("语", "言 🚀")]:
        before = tokenizer.encode(prompt)
        after = tokenizer.encode(prompt + text)[len(before) :]
        whole = tokenizer.decode(before + after)
        assert tokenizer.decode(before) + pieces(tokenizer, after, prompt_ids=before) == whole


def test_pieces_come_early(load: Any) -> None:
    """A character whose bytes are spread over tokens comes with its last one; plain words come at once."""
    tokenizer, _ = load("gpt2")
    ids = tokenizer.encode("ok 🦙 ok")
    detokenizer = tokenizer.detokenizer()
    out = [detokenizer.push(id) for id in ids]
    assert "".join(out) == "ok 🦙 ok"
    assert "" in out
    assert out[0] == "ok"
    assert detokenizer.finish() == ""
    llama, _ = load("llama-spm")
    detokenizer = llama.detokenizer()
    out = [detokenizer.push(id) for id in llama.encode("Hello 🦙 world")]
    assert out == ["", "Hello", " ", "", "", "", "", "🦙 world"]


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    vocabulary = {"\u2581a": 0, "\u2581": 1, "b": 2, "\u2581\u2581c\u2581": 3, "[S]": 4}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="b"))
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.add_special_tokens(["[S]"])
    return core


@pytest.mark.parametrize("kind", ["always", "never", "none", "wordpiece"])
def test_other_decoders(tmp_path: Path, kind: str) -> None:
    core = metaspace("always" if kind in ("none", "wordpiece") else kind)
    if kind == "none":
        del core
        core = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}, unk_token="a"))
    if kind == "wordpiece":
        core.decoder = decoders.WordPiece()
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": false}')
    tokenizer = load_tokenizer(tmp_path, {})
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(5) for _ in range(rng.randint(0, 6))]
        assert pieces(tokenizer, ids) == tokenizer.decode(ids) == core.decode(ids)
        prompt, rest = ids[:2], ids[2:]
        assert tokenizer.decode(prompt) + pieces(tokenizer, rest, prompt_ids=prompt) == tokenizer.decode(ids)


def test_added_tokens(tmp_path: Path) -> None:
    """Their flags and ids: tokenizer.model and tokenizer.json give what transformers does."""
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<|end|>", "<tool>"],
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": True},
            "32000": {"content": "<|end|>", "rstrip": True, "special": True},
            "32001": {"content": "<tool>", "special": True},
            "32002": {"content": "<left>", "lstrip": True, "normalized": False},
            "32003": {"content": "zqword", "single_word": True, "normalized": False},
        },
    }
    transformers = pytest.importorskip("transformers", minversion="5")
    folders = {}
    for kind in ("llama-spm", "llama-json"):
        folders[kind] = folder_of(kind, tmp_path)
        (folders[kind] / "special_tokens_map.json").unlink()
        (folders[kind] / "tokenizer_config.json").write_text(json.dumps(config))
    spm, fast = (load_tokenizer(folder, {"vocab_size": 32100}) for folder in folders.values())
    oracle = transformers.AutoTokenizer.from_pretrained(folders["llama-json"])
    assert fast.vocab_size == spm.vocab_size == 32005
    assert spm.token_to_id("<pad>") == spm.pad_token_id == fast.pad_token_id == 32004
    assert spm.id_to_token(32001) == fast.id_to_token(32001) == "<tool>"
    assert spm.id_to_token(32050) is None
    assert spm.decode([15043, 32050]) == fast.decode([15043, 32050]) == "Hello"
    for text in ("a<|end|>  b", "a  <left>b", "zqword zqwords szqword<tool>zqword", "<tool> x", "<pad>", "a <left>"):
        ids = spm.encode(text)
        assert ids == fast.encode(text) == oracle.encode(text), text
        assert pieces(spm, ids) == spm.decode(ids) == fast.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama-json", "llama-spm"])
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (None, None)])
def test_bos_and_eos(tmp_path: Path, kind: str, bos: bool | None, eos: bool | None) -> None:
    """add_bos_token and add_eos_token; tokenizer.json has its own rule. tokenizer.model puts bos by default."""
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = folder_of(kind, tmp_path)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) if path.exists() else {"bos_token": "<|endoftext|>"}
    values |= {"add_bos_token": bos, "add_eos_token": eos}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    tokenizer = load_tokenizer(folder, KINDS[kind][2])
    if kind == "llama-spm" and bos is None:
        assert tokenizer.encode("Hello") == [1, 15043]
        return
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("Hello") == oracle.encode("Hello")
    assert tokenizer.encode("Hello", add_special_tokens=False) == oracle.encode("Hello", add_special_tokens=False)


def test_special_ids_from_the_configs(tmp_path: Path) -> None:
    shutil.copy(DEFAULT_MODEL / "tokenizer.json", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "pad_token_id": 9}')
    tokenizer = load_tokenizer(tmp_path, {"bos_token_id": 5, "pad_token_id": None})
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 7, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_text_or_ids(load: Any, kind: str) -> None:
    tokenizer, _ = load(kind)
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TokenizerError, match="must be a str, got bytes"):
        tokenizer.encode(b"a")
    for bad in (-1, tokenizer.vocab_size, 1 << 70):
        with pytest.raises(TokenizerError, match=f"ids are from 0 to {tokenizer.vocab_size - 1}, got {bad}"):
            tokenizer.decode([bad])
    with pytest.raises(TokenizerError, match="ids are integers, got a str"):
        tokenizer.detokenizer().push("a")
    ids = tokenizer.encode("Hello world")
    assert tokenizer.decode(np.array(ids)) == "Hello world"


def test_bad_files(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path, {})

    refused("is not enough: it has none of them, download")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    refused("it has vocab.json alone")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    refused("do not fit: .*`b` out of vocabulary")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    refused(r"not a SentencePiece model \(the file is empty\)")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    refused(r"not a SentencePiece model .*, add the folder's tokenizer.json")
    for text in ("", "[]", "{}", '{"model": 1}'):
        (tmp_path / "tokenizer.json").write_text(text)
        refused(r"\[tokenizer.json\] .* is not a tokenizer")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "yes"}')
    refused("add_bos_token must be true or false, got 'yes'")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"text": 1}}')
    refused("bos_token must be text or have text as `content`")
    (tmp_path / "tokenizer_config.json").write_text("{,}")
    refused(r"\[tokenizer_config.json\] must be JSON, .* line 1 column 2")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizerFast"}')
    refused(
        "read for GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, .* is of CTRLTokenizer, save it"
    )


def test_sentencepiece_with_a_piece_that_is_no_text(tmp_path: Path) -> None:
    model = data_path("tokenizers/llama-2/tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model.replace("\u2581the".encode(), b"\xff\xfe\xfdthe", 1))
    with pytest.raises(TokenizerError, match=r"not a SentencePiece model .*utf-8"):
        load_tokenizer(tmp_path, {})


def test_declared_id_that_the_vocabulary_cannot_give(tmp_path: Path) -> None:
    shutil.copy(DEFAULT_MODEL / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"5000": {"content": "<x>"}}}')
    with pytest.raises(TokenizerError, match="'<x>' is declared as 5000, the vocabulary gives it 2048"):
        load_tokenizer(tmp_path, {})


FORK = """
import os, sys
from pathlib import Path
from pyllm.tokenization import load_tokenizer
tokenizer = load_tokenizer(Path(sys.argv[1]), {})
tokenizer.encode("before the fork " * 1000)
if os.fork() == 0:
    tokenizer.encode("after the fork " * 1000)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_makes_no_noise() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(DEFAULT_MODEL)], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
