"""EncoderModel's face: what texts it takes and refuses, and how sentence-transformers' files change its embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import toy_folder
from safetensors.numpy import save_file
from test_encoders import make_model, recorded

import pyllm
from pyllm import errors
from pyllm.engine.encoder_model import EncoderModel
from pyllm.engine.pooling import pool

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "the", "cat", "dog", "sat", ":"]


@pytest.fixture(scope="module")
def model() -> EncoderModel:
    return make_model(toy_folder("bert"), "float32")


def sentence_folder(folder: Path, modules: list[str], files: dict[str, Any], toy: str = "bert-base") -> Path:
    """A toy encoder with a WordPiece tokenizer of a few words, and sentence-transformers' files as given."""
    shutil.copytree(toy_folder(toy), folder, dirs_exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    )
    listed = []
    for index, kind in enumerate(modules):
        path = "" if kind == "Transformer" else f"{index}_{kind}"
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def norm(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows)


def test_one_text_gives_one_array_and_a_list_a_list(model: EncoderModel) -> None:
    (ids, _), (others, _) = (text for text, _, _ in recorded("bert")[1:])
    one, both = model.encode(ids), model.encode([ids, others])
    assert (one.shape, one.dtype) == ((7, 24), np.float32)
    assert [rows.shape for rows in both] == [(7, 24), (60, 24)]
    assert one.tobytes() == model.encode(np.array(ids)).tobytes()
    tested_device.assert_same_numbers(both[0], one)
    assert model.logits(ids).shape == (7, 131)
    assert [rows.shape for rows in model.logits([others, ids])] == [(60, 131), (7, 131)]
    assert make_model(toy_folder("bert-classify"), "float32").logits(ids).shape == (5,)
    assert model.embed([ids, others]).shape == (2, 24)
    assert model.embed(ids).shape == (24,)
    assert model.embed([]).shape == (0, 24)
    assert model.forward([]) == []
    assert (model.head, model.max_length) == ("masked-lm", 64)


def test_more_rows_than_a_step_holds(model: EncoderModel) -> None:
    """2048 rows run at once; texts that share a step with others give what they give alone."""
    (ids, _) = recorded("bert")[2][0]
    texts = [ids[: 1 + i % 60] for i in range(150)]
    rows = model.forward(texts, output="hidden")
    assert [len(each) for each in rows] == [len(text) for text in texts]
    for index in (0, 77, 149):
        tested_device.assert_same_numbers(rows[index], model.encode(texts[index]))


def test_token_types(model: EncoderModel) -> None:
    (ids, types), output, _ = recorded("bert")[2]
    found = model.forward([ids], [types])[0]
    np.testing.assert_allclose(found, output, rtol=0, atol=1e-4)
    assert np.abs(model.forward([ids])[0] - found).max() > 0.1
    one_type = make_model(toy_folder("roberta"), "float32")
    assert one_type.forward([ids], [types])[0].tobytes() == one_type.forward([ids])[0].tobytes()


def test_what_is_refused(model: EncoderModel) -> None:
    with pytest.raises(errors.PromptError, match=r"text 1: .*got no tokens.* \| text 2: .*\[0, 131\), got \[131\]"):
        model.encode([[1], [], [131]])
    with pytest.raises(errors.ContextLengthError, match=r"got 65 tokens for a context of 64"):
        model.encode([5] * 65)
    with pytest.raises(errors.ContextLengthError, match=r"text 1: .*at most 64 tokens, got 65"):
        model.embed([[5], [5] * 65])
    with pytest.raises(errors.PromptError, match=r"type_ids must lie in \[0, 2\), got \[2\]"):
        model.forward([[5, 6]], [[0, 2]])
    with pytest.raises(errors.PromptError, match="as many as ids"):
        model.forward([[5, 6]], [[0]])
    with pytest.raises(errors.InvalidOptionError, match=r"pooling must be one or several of cls, .* got 'median'"):
        model.embed([5], pooling="median")
    with pytest.raises(errors.InvalidOptionError, match="batch_size"):
        model.embed([5], batch_size=0)
    with pytest.raises(errors.InvalidOptionError, match="layers must be from -3 to 2"):
        model.hidden_states([5], [3])
    with pytest.raises(errors.InvalidOptionError, match="'head' or 'hidden'"):
        model.forward([[5]], output="pooled")


def test_a_step_that_fails_leaves_the_model_usable(model: EncoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.encode([5, 6, 7])
    runner = model._open_runner()

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", fail)
        with pytest.raises(errors.OutOfMemoryError):
            model.encode([5, 6, 7])
    assert model.encode([5, 6, 7]).tobytes() == expected.tobytes()
    with model._cache("encode") as cache:
        assert cache.blocks_in_use == 0


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = tmp_path / "bert"
    shutil.copytree(toy_folder("bert"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.NumericError, match="NaN or infinity for text 0, 1"):
        make_model(folder, "float32").encode([[5], [6]])


def test_a_closed_model_and_copies_are_refused() -> None:
    with make_model(toy_folder("bert-base"), "float32") as closed:
        closed.encode([5])
    with pytest.raises(errors.PyllmError, match="closed"):
        closed.encode([5])


def test_pooling() -> None:
    rows = np.array([[1, 8], [3, 2], [5, 2]], np.float32)
    expected = {
        "cls": [1, 8],
        "lasttoken": [5, 2],
        "max": [5, 8],
        "mean": [3, 4],
        "weightedmean": [(1 + 6 + 15) / 6, (8 + 4 + 6) / 6],
        "mean_sqrt_len_tokens": [9 / 3**0.5, 12 / 3**0.5],
    }
    for mode, vector in expected.items():
        np.testing.assert_allclose(pool(rows, mode), vector, rtol=1e-6)


def test_without_files_the_mean_is_taken(model: EncoderModel) -> None:
    ids = recorded("bert")[1][0][0]
    rows = model.encode(ids)
    np.testing.assert_allclose(model.embed(ids, normalize=False), rows.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.embed(ids), norm(rows.mean(0)), rtol=0, atol=1e-6)
    joined = model.embed(ids, normalize=False, pooling=["cls", "last"])
    assert joined.tobytes() == np.concatenate([rows[0], rows[-1]]).tobytes()


def test_sentence_transformers_modules_run_in_order(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    dense = {"in_features": 48, "out_features": 5, "bias": True}
    folder = sentence_folder(
        tmp_path,
        ["Transformer", "Pooling", "Dense", "Normalize"],
        {
            "1_Pooling/config.json": pooling,
            "2_Dense/config.json": {**dense, "activation_function": "torch.nn.modules.activation.Tanh"},
        },
    )
    random = np.random.default_rng(1)
    weight, bias = random.standard_normal((5, 48)).astype(np.float32), random.standard_normal(5).astype(np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    model = make_model(folder, "float32")
    rows = model.encode("the cat sat")
    assert len(rows) == 5  # with [CLS] and [SEP]
    expected = np.tanh(weight @ np.concatenate([rows[0], rows.max(0)]) + bias)
    np.testing.assert_allclose(model.embed("the cat sat", normalize=False), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.embed("the cat sat"), norm(expected), rtol=0, atol=1e-5)
    assert model.embed([]).shape == (0, 5)
    with pytest.raises(errors.InvalidOptionError, match="Dense module takes vectors of 48, this pooling gives 24"):
        model.embed("the cat", pooling="mean")


def test_a_model_in_a_subfolder_of_its_modules(tmp_path: Path) -> None:
    files = {"1_Pooling/config.json": {"pooling_mode_cls_token": True}}
    folder = sentence_folder(tmp_path, ["Transformer", "Pooling"], files)
    shutil.copytree(toy_folder("bert-base"), folder / "0_Transformer")
    model = make_model(folder / "0_Transformer", "float32")
    assert model.embed([5, 6], normalize=False).tobytes() == model.encode([5, 6])[0].tobytes()


def test_prompts_lengths_and_lower_case(tmp_path: Path) -> None:
    folder = sentence_folder(
        tmp_path,
        ["Transformer", "Pooling"],
        {
            "1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False},
            "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True},
            "config_sentence_transformers.json": {
                "prompts": {"query": "query: ", "document": ""},
                "default_prompt_name": "query",
            },
        },
    )
    model = make_model(folder, "float32")
    assert model.tokenizer.encode("query: the cat") == [2, 5, 10, 6, 7, 3]
    rows = model.encode([2, 5, 10, 6, 7, 3])
    np.testing.assert_allclose(model.embed("THE CAT", normalize=False), rows[3:].mean(0), rtol=0, atol=1e-6)
    plain = model.encode([2, 6, 7, 3]).mean(0)
    for chosen in ({"prompt_name": "document"}, {"prompt": ""}):
        np.testing.assert_allclose(model.embed("THE CAT", normalize=False, **chosen), plain, rtol=0, atol=1e-6)
    with pytest.raises(errors.ContextLengthError, match=r"at most 6 tokens, got 8"):
        model.embed("the cat sat the")
    cut = model.embed("the cat sat the", truncation=True)
    assert cut.tobytes() == model.embed("the cat").tobytes()
    with pytest.raises(errors.InvalidOptionError, match=r"'query', 'document'\), got 'passage'"):
        model.embed("the cat", prompt_name="passage")


INVALID, UNSUPPORTED = errors.InvalidConfigError, errors.UnsupportedModelError
WRONG: dict[str, tuple[list[str], dict[str, Any], type[Exception], str]] = {
    "module": (["Transformer", "LSTM"], {}, UNSUPPORTED, "got 'LSTM'"),
    "no pooling": (["Transformer", "Pooling"], {"1_Pooling/config.json": {}}, INVALID, "must be true"),
    "length": (["Transformer"], {"sentence_bert_config.json": {"max_seq_length": 0}}, INVALID, "got 0"),
    "outside": ([], {"modules.json": [{"type": "a.Pooling", "path": "../x"}]}, INVALID, "must lie in"),
    "no list": ([], {"modules.json": {"type": 1}}, INVALID, "must list objects"),
    "prompt": ([], {"config_sentence_transformers.json": {"default_prompt_name": "q"}}, INVALID, "'q'"),
    "activation": (
        ["Transformer", "Dense"],
        {"1_Dense/config.json": {"activation_function": "torch.nn.Softplus"}},
        UNSUPPORTED,
        "'Softplus'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_sentence_transformers_files_that_are_wrong(tmp_path: Path, case: str) -> None:
    modules, files, error, message = WRONG[case]
    model = pyllm.load(sentence_folder(tmp_path, modules, files), dtype="float32")
    assert model.encode([5]).shape == (1, 24)
    with pytest.raises(error, match=message):
        model.embed("the cat")
