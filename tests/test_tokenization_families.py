"""Tokenizers of every family: ids, pairs, types, offsets and texts equal transformers' and SentencePiece's own."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from conftest import data_path
from test_tokenization import NASTY, SPECIAL, pieces, random_texts
from tokenizer_folders import BPE, FAMILIES, UNIGRAM, real, t5_model, write_folder

from pyllm.errors import TokenizerError
from pyllm.tokenization import Tokenizer, check_vocabulary, load_tokenizer
from pyllm.tokenization.text_streams import CleanedStream, cleaned

SPELLED = [
    *SPECIAL,
    "</s>",
    "a </s> b",
    "x<pad>y",
    "[CLS] a [SEP] b [UNK]",
    "a<mask>b",
    "a[MASK]b",
    "<extra_id_0> x <extra_id_1>y",
    "__en__ hi __fr__",
    "en_XX hello en_XX",
    "<unk> a <unk>b",
    ">>por<< Hello",
    "hi >>por<< x",
    "<mask_1>a <mask_2>",
    "a, 9, 10, 1999, and 12,",
    "``quoted'' text",
    "ΑΣ Σ ς İ",
]
WIDE_MASK = ["a <mask> b", "[CLS] [MASK] x", " <mask>"]
# `tokenizers` normalizes whole graphemes where SentencePiece looks for the longest known sequence: an accent after a
# space or a control character ends up elsewhere. (In transformers 5, and in 4's converted tokenizers.)
ODD_GRAPHEME = re.compile("[\u2581\\s\x00-\x1f\x7f\u200d]\u0301")
PLAIN_TEXTS = [text for text in NASTY + random_texts(200, seed=7) if not ODD_GRAPHEME.search(text)]
# Families that transformers 5 reads from these files as 4 did.
SAME = [
    *("bert", "bert-cased", "distilbert", "electra", "mpnet", "gpt2", "gpt-neox", "codegen", "opt", "roberta", "bart"),
    *("t5", "albert", "xlm-roberta", "marian", "m2m100"),
]
# Families whose SentencePiece files transformers 5 reads without their normalization or without their tokens: compared
# with its converters, which are those of 4.
CONVERTED = {
    "t5": "T5Converter",
    "xlm-roberta": "XLMRobertaConverter",
    "camembert": "CamembertConverter",
    "mbart": "MBartConverter",
    "mbart50": "MBart50Converter",
    "pegasus": "PegasusConverter",
    "deberta-v2": "DebertaV2Converter",
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")

    @cache
    def load_family(name: str) -> tuple[Tokenizer, Path]:
        folder = write_folder(root / name, FAMILIES[name]())
        return load_tokenizer(folder, json.loads((folder / "config.json").read_text())), folder

    return load_family


def the_same(ours: list[int], theirs: list[int], text: str) -> None:
    assert ours == theirs, text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAME)
def test_equal_to_transformers(load: Any, name: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer, folder = load(name)
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    for text in PLAIN_TEXTS + SPELLED:
        ids = oracle.encode(text)
        the_same(tokenizer.encode(text), ids, text)
        the_same(tokenizer.encode(text, add_special_tokens=False), oracle.encode(text, add_special_tokens=False), text)
        the_same(tokenizer.encode(text, pair="b é"), oracle.encode(text, "b é"), text)
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip), text
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 12))]
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    for key in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        if getattr(oracle, f"{key}_token") is not None:
            assert getattr(tokenizer, f"{key}_token_id") == getattr(oracle, f"{key}_token_id"), key
    assert tokenizer.mask_token == oracle.mask_token
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.special_ids == set(oracle.all_special_ids)
    for pair in (False, True):
        assert tokenizer.num_special_tokens(pair) == oracle.num_special_tokens_to_add(pair)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SAME if name not in ("marian", "m2m100")])
def test_places_equal_to_transformers(load: Any, name: str) -> None:
    """Token types, offsets, words and sequences. For SentencePiece the places of odd characters are not compared."""
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer, folder = load(name)
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    exact = name not in ("t5", "albert", "xlm-roberta")
    asked = {"return_offsets_mapping": True, "return_token_type_ids": True, "return_special_tokens_mask": True}
    compared = 0
    for text in PLAIN_TEXTS + SPELLED:
        theirs, ours = oracle(text, "Hello wörld", **asked), tokenizer.encode_plus(text, "Hello wörld")
        the_same(ours.ids, theirs["input_ids"], text)
        assert ours.type_ids == theirs["token_type_ids"]
        assert ours.special_mask == theirs["special_tokens_mask"]
        assert ours.sequence_ids == theirs.sequence_ids()
        assert ours.word_ids == theirs.word_ids(), text
        if exact or (text.isascii() and "``" not in text):
            compared += 1
            assert ours.offsets == [tuple(place) for place in theirs["offset_mapping"]], text
    assert compared > 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONVERTED)
def test_equal_to_transformers_4(load: Any, name: str) -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    tokenizer, folder = load(name)
    file = next(path for path in folder.iterdir() if path.suffix == ".model")
    slow = SimpleNamespace(
        vocab_file=str(file),
        convert_tokens_to_ids=tokenizer.token_to_id,
        do_lower_case=False,
        split_by_punct=False,
        _extra_ids=100,
        pad_token="<pad>",
        eos_token="</s>",
        eos_token_id=tokenizer.eos_token_id,
        mask_token="<mask_2>",
        mask_token_id=3,
        mask_token_sent="<mask_1>",
        offset=103,
    )
    oracle = getattr(convert, CONVERTED[name])(slow).converted()
    for text in PLAIN_TEXTS:
        if name == "deberta-v2" and not (text.strip() == text and text.isprintable() and "\u2581" not in text):
            continue  # 4's converted tokenizer strips spaces before it knows which characters are some
        for special in (True, False):
            ids = oracle.encode(text, add_special_tokens=special).ids
            the_same(tokenizer.encode(text, add_special_tokens=special), ids, text)
        text_of_ids = oracle.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text_of_ids, text
    assert tokenizer.vocab_size >= oracle.get_vocab_size()


@pytest.mark.parametrize("name", ["xlm-roberta", "mbart50", "nllb", "deberta-v2", "pegasus", "t5", "gemma"])
def test_pieces_are_sentencepiece_s(load: Any, name: str) -> None:
    """Texts without special tokens have the pieces that SentencePiece gives them, numbered as fairseq or the model."""
    tokenizer, folder = load(name)
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(next(path for path in folder.iterdir() if path.suffix == ".model"))
    )
    shift = {"xlm-roberta": 1, "mbart50": 1, "nllb": 1, "pegasus": 103}.get(name, 0)
    for text in NASTY + random_texts(300, seed=8):
        ids = [tokenizer.unk_token_id if id == model.unk_id() else id + shift for id in model.encode(text)]
        the_same(tokenizer.encode(text, add_special_tokens=False), ids, text)


@pytest.mark.parametrize("name", FAMILIES)
def test_places_cover_their_tokens(load: Any, name: str) -> None:
    """Places run forward inside the text; the ids are those of `encode`; words are numbered without gaps."""
    tokenizer, _ = load(name)
    for text in NASTY + SPELLED + WIDE_MASK + random_texts(100, seed=9):
        encoding = tokenizer.encode_plus(text, add_special_tokens=False)
        assert encoding.ids == tokenizer.encode(text, add_special_tokens=False)
        assert len(encoding.offsets) == len(encoding.word_ids) == len(encoding.ids)
        assert all(0 <= begin <= end <= len(text) for begin, end in encoding.offsets), text
        assert encoding.offsets == sorted(encoding.offsets), text
        words = [word for word in encoding.word_ids if word is not None]
        assert words == sorted(words)
    encoding = tokenizer.encode_plus("Hello world", "wide world")
    first = [place for place, of in zip(encoding.offsets, encoding.sequence_ids, strict=True) if of == 0]
    covered = {i for begin, end in first for i in range(begin, end)}
    assert covered >= {i for i, char in enumerate("Hello world") if char != " "}
    halves = [tokenizer.encode(text, add_special_tokens=False) for text in ("Hello world", "wide world")]
    built = tokenizer.build_inputs(*halves)
    assert built.ids == encoding.ids == tokenizer.encode("Hello world", pair="wide world")
    assert (built.type_ids, built.special_mask) == (encoding.type_ids, encoding.special_mask)
    assert built.offsets == []
    assert sum(built.special_mask) == tokenizer.num_special_tokens(True)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_equal_the_whole(load: Any, name: str, skip: bool) -> None:
    tokenizer, _ = load(name)
    rng = random.Random(12)
    pools = [range(tokenizer.vocab_size), sorted(tokenizer.special_ids), range(min(300, tokenizer.vocab_size))]
    for _ in range(400):
        ids = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 16))]
        assert pieces(tokenizer, ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip), ids
    for text in NASTY + SPELLED:
        ids = tokenizer.encode(text)
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        assert pieces(tokenizer, ids, skip_special_tokens=skip) == whole, text
        before, after = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        start = tokenizer.decode(before, skip_special_tokens=skip)
        if whole.startswith(start) and "\ufffd" not in start:
            rest = pieces(tokenizer, after, prompt_ids=before, skip_special_tokens=skip)
            assert start + rest == whole, text


def test_translations_come_word_by_word(load: Any) -> None:
    """Marian cleans up spaces before punctuation: a word is certain when the next one begins."""
    tokenizer, _ = load("marian")
    ids = tokenizer.encode("Um exemplo , por favor .", target=True)
    detokenizer = tokenizer.detokenizer()
    out = [detokenizer.push(id) for id in ids]
    assert sum(map(bool, out)) > 3
    assert "".join([*out, detokenizer.finish()]) == tokenizer.decode(ids) == "Um exemplo, por favor."


class Letters:
    """A stream whose tokens are their own text."""

    def push(self, token: str) -> str:
        return token

    def mark(self) -> None:
        pass

    def finish(self) -> str:
        return ""


def test_cleaned_streams_equal_cleaned_texts() -> None:
    """However the text is cut, with and without a prompt, and a text with words does not wait for its end."""
    rng = random.Random(4)
    for _ in range(3000):
        text = "".join(rng.choice(" .,?!'ntmsverab  ") for _ in range(rng.randint(0, 30)))
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(0, 6)))
        parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        stream = CleanedStream(Letters())
        assert "".join([*map(stream.push, parts), stream.finish()]) == cleaned(text), parts
        stream = CleanedStream(Letters())
        stream.push(parts[0])
        stream.mark()
        rest = "".join([*map(stream.push, parts[1:]), stream.finish()])
        assert rest == cleaned(text)[len(cleaned(parts[0])) :], parts
    stream = CleanedStream(Letters())
    assert [stream.push(word) for word in ("a", " dog", " .", " It", " is")] == ["", "a", " dog", ".", " It"]


@pytest.mark.filterwarnings("ignore")
def test_cleaning_up_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    files, config, model = FAMILIES["xlm-roberta"]()
    folder = write_folder(tmp_path, (files, {**config, "clean_up_tokenization_spaces": True}, model))
    tokenizer, oracle = load_tokenizer(folder, model), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("It is n't , he 's said . Is it ? 'm 've", "a ' b ' c !", *random_texts(50, seed=3)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True) == pieces(tokenizer, ids)
        bare = pieces(tokenizer, ids, clean_up_tokenization_spaces=False)
        assert bare == oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_masks_swallow_the_space_before_them(load: Any) -> None:
    """As in transformers 4 and the published tokenizer.json files; transformers 5 forgot it for some classes."""
    for name in ("roberta", "bart", "mpnet", "xlm-roberta", "camembert", "mbart50"):
        tokenizer, _ = load(name)
        ids = tokenizer.encode("a <mask>", add_special_tokens=False)
        assert ids == [*tokenizer.encode("a", add_special_tokens=False), tokenizer.mask_token_id], name
    albert, _ = load("albert")
    assert albert.decode(albert.encode("a [MASK] b"), skip_special_tokens=False) == "[CLS] a[MASK] b[SEP]"


def test_blenderbot_ends_with_the_end_token(load: Any) -> None:
    """transformers 4; 5 puts nothing around texts of vocab.json and merges.txt."""
    tokenizer, _ = load("blenderbot")
    assert tokenizer.encode("x")[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.encode("x", add_special_tokens=False) == tokenizer.encode(" x", add_special_tokens=False)


def test_words_that_are_never_split(tmp_path: Path) -> None:
    files, _, config = FAMILIES["bert"]()
    folder = write_folder(tmp_path, (files, {"never_split": ["[unused1]", "[nope]"]}, config))
    tokenizer = load_tokenizer(folder, config)
    assert tokenizer.encode("a [unused1] b", add_special_tokens=False) == [1037, 2, 1038]
    (folder / "tokenizer_config.json").write_text('{"never_split": "a"}')
    with pytest.raises(TokenizerError, match="never_split must be a list of words, got 'a'"):
        load_tokenizer(folder, config)


@pytest.mark.parametrize("legacy", [True, False])
def test_t5_without_legacy(tmp_path: Path, legacy: bool) -> None:
    """legacy false: only a stretch with a space before it begins a word after a sentinel."""
    config = {"tokenizer_class": "T5Tokenizer", "legacy": legacy, "extra_ids": 2}
    tokenizer = load_tokenizer(write_folder(tmp_path, ({"spiece.model": t5_model()}, config, {})), {})
    assert tokenizer.vocab_size == 1002
    assert [tokenizer.token_to_id(f"<extra_id_{i}>") for i in range(2)] == [1001, 1000]
    tokens = [tokenizer.id_to_token(id) for id in tokenizer.encode("the<extra_id_0>the <extra_id_1> the")]
    assert tokens[:2] == ["\u2581the", "<extra_id_0>"]
    assert (tokens[2] == "\u2581the") == legacy
    assert tokens[-2:] == ["\u2581the", "</s>"]


def test_language_codes(load: Any) -> None:
    codes = {"mbart": ("de_DE", 25), "mbart50": ("de_DE", 52), "nllb": ("deu_Latn", 202), "m2m100": ("de", 100)}
    for name, (code, count) in codes.items():
        tokenizer, _ = load(name)
        id = tokenizer.lang_to_id(code)
        assert len(tokenizer.languages) == count
        assert tokenizer.id_to_token(id).strip("_") == code
        assert tokenizer.forced_bos_token_id(code) == id
        eos = tokenizer.eos_token_id
        text = tokenizer.encode("Hello", add_special_tokens=False)
        around = [*text, eos, id] if name == "mbart" else [id, *text, eos]
        assert tokenizer.encode("Hello", src_lang=code) == around
        assert tokenizer.encode("Hello", tgt_lang=code, target=True) == around
        assert tokenizer.encode("Hello") == tokenizer.encode("Hello", src_lang=tokenizer.src_lang)
        assert tokenizer.decode(around) == "Hello"
        with pytest.raises(TokenizerError, match=rf"\[src_lang\] language codes are .* got 'de-x', use {code} perhaps"):
            tokenizer.encode("Hello", src_lang="de-x")
        with pytest.raises(TokenizerError, match=r"\[lang_to_id\] .* more, got 'tlh'"):
            tokenizer.lang_to_id("tlh")
    nllb, _ = load("nllb")
    with pytest.raises(TokenizerError, match="which language to translate into, got none, pass tgt_lang="):
        nllb.forced_bos_token_id()
    m2m100, _ = load("m2m100")
    assert m2m100.forced_bos_token_id() == m2m100.lang_to_id("fr")
    bert, _ = load("bert")
    assert (bert.languages, bert.src_lang, bert.forced_bos_token_id("de")) == ([], None, None)
    with pytest.raises(TokenizerError, match="has no languages, got src_lang='de', leave it out"):
        bert.encode("x", src_lang="de")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mbart50", "m2m100", "mbart"])
def test_languages_equal_to_transformers(load: Any, name: str, tmp_path: Path) -> None:
    """Also from a saved tokenizer.json, whose own special tokens are those of one language."""
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer, folder = load(name)
    source, target = ("de", "zh") if name == "m2m100" else ("de_DE", "fr_XX")
    oracle = transformers.AutoTokenizer.from_pretrained(folder, src_lang=source, tgt_lang=target)
    tokenizers = [tokenizer]
    if name != "m2m100":
        oracle.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").is_file()
        tokenizers.append(load_tokenizer(tmp_path, {}))
        assert tokenizers[1].src_lang == source
        assert tokenizers[1].tgt_lang == target
    for ours in tokenizers:
        assert ours.encode("Hello", src_lang=source) == oracle.encode("Hello")
        assert ours.encode("Hello", tgt_lang=target, target=True) == oracle(text_target="Hello")["input_ids"]
        assert ours.lang_to_id(target) == oracle.convert_tokens_to_ids(f"__{target}__" if name == "m2m100" else target)


def test_marian_sides(load: Any) -> None:
    """Texts of the target language are split by target.spm; the language wanted is asked for before the source."""
    tokenizer, folder = load("marian")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    text = "O gato estava sentado no tapete."
    for side, target in (("source", False), ("target", True)):
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        expected = [vocabulary.get(piece, vocabulary["<unk>"]) for piece in model.encode(text, out_type=str)]
        assert tokenizer.encode(text, target=target) == [*expected, vocabulary["</s>"]]
    assert tokenizer.encode(text) != tokenizer.encode(text, target=True)
    assert tokenizer.languages == ["pob", "por"]
    assert tokenizer.encode("Hi", tgt_lang="por") == tokenizer.encode(">>por<<Hi")
    assert tokenizer.forced_bos_token_id("por") is None
    assert tokenizer.model_max_length == 512


def test_settings_of_the_config(tmp_path: Path) -> None:
    files, config, model = FAMILIES["bert"]()
    config |= {"model_max_length": int(1e30), "padding_side": "left", "truncation_side": "left"}
    tokenizer = load_tokenizer(write_folder(tmp_path, (files, config, model)), model)
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side) == (None, "left", "left")
    check_vocabulary(tokenizer, 30522)
    check_vocabulary(tokenizer, 30528)
    with pytest.raises(TokenizerError, match=r"\[vocab_size\] the model has 30000 tokens, its tokenizer has 30522"):
        check_vocabulary(tokenizer, 30000)
    for wrong, message in (
        ({"model_max_length": "many"}, "model_max_length must be a positive integer, got 'many'"),
        ({"padding_side": "up"}, "padding_side must be left or right, got 'up'"),
        ({"do_lower_case": "yes"}, "do_lower_case must be true or false, got 'yes'"),
        ({"unk_token": "[NONE]"}, r"the unknown token '\[NONE\]' must be a line of it"),
        ({"tokenizer_class": "FancyTokenizer"}, "vocab.txt are read for BertTokenizer, .* is of FancyTokenizer"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path, model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_config_wins_over_tokenizer_json(load: Any, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    _, folder = load(name)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"do_lower_case": False, "tokenize_chinese_chars": False, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path, {})
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello café 我想在", "hello", " x", "a<mask>b"):
        ids = oracle.encode(text)
        the_same(tokenizer.encode(text), ids, text)
    assert tokenizer.encode("Hello") != load(name)[0].encode("Hello")


def test_pegasus_numbering(tmp_path: Path) -> None:
    def load_with(**settings: Any) -> Tokenizer:
        config = {"tokenizer_class": "PegasusTokenizer", **settings}
        return load_tokenizer(write_folder(tmp_path, ({"spiece.model": t5_model()}, config, {})), {})

    for tokenizer in (load_with(), load_with(mask_token_sent={"content": "<mask_1>"}, offset=103)):
        ids = [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk>")]
        assert ids == [0, 1, 2, 3, 4, 105]
    big_bird = load_with(offset=0, mask_token="[MASK]", mask_token_sent=None)
    assert big_bird.encode("Hello") == [156, 86, 20, 1]
    with pytest.raises(TokenizerError, match="got offset 103 and mask_token_sent None, add the folder's tokenizer"):
        load_with(mask_token_sent=None)


def test_unknown_piece_classes(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(real(UNIGRAM))
    with pytest.raises(TokenizerError, match=r"\[spiece.model\] .* this one is of XLNetTokenizer, add the folder's"):
        load_tokenizer(tmp_path, {"tokenizer_class": "XLNetTokenizer"})
    (tmp_path / "spiece.model").rename(tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path, {}).encode("Hello world", add_special_tokens=False) == [156, 86, 20, 891]
    config = {"tokenizer_class": "NllbTokenizer", "src_lang": "xx_Latn"}
    folder = write_folder(tmp_path / "nllb", ({"sentencepiece.bpe.model": real(BPE)}, config, {}))
    with pytest.raises(TokenizerError, match=r"\[tokenizer_config.json, src_lang\] .* got 'xx_Latn'"):
        load_tokenizer(folder, {})


def test_llama_cpp_expectations_of_bert(load: Any) -> None:
    tokenizer, _ = load("bert")
    recorded = data_path("tokenizers/llama.cpp-expected") / "ggml-vocab-bert-bge.gguf"
    texts = Path(f"{recorded}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{recorded}.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == [int(id) for id in line.split()], text
