"""Files that lie, and requests that make no sense: a typed error, never another exception, never a hang or a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_models
from conftest import FIXTURES
from safetensors.numpy import load_file

import pyllm
from pyllm.decode.options import GenerationOptions
from pyllm.errors import InvalidConfigError, InvalidOptionError, NumericError, PromptError, TokenizerError
from pyllm.models import build_network
from pyllm.tokenization import load_tokenizer
from pyllm.tokenization.languages import lookup

LONE_SURROGATE = "\ud800"


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_models.write_folder(tmp_path_factory.mktemp("hostile") / "bert", "bert", "base")


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Any:
    with pyllm.load(encoder_folder, num_threads=1) as model:
        yield model


def linked(source: Path, folder: Path, **files: Any) -> Path:
    """A folder like `source` with other contents of some JSON files, by name without the ending."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.unlink(missing_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_messages_do_not_repeat_long_values() -> None:
    config = json.loads((FIXTURES / "gpt2" / "config.json").read_text())
    for name in ("n_embd", "activation_function", "model_type", "quantization_config"):
        with pytest.raises(ValueError, match=r"^\[config.json\]") as caught:
            build_network({**config, name: "x" * 1_000_000})
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "modules",
    [
        "[" * 100_000,
        json.dumps([{"type": "x.Pooling", "path": "../.."}]),
        json.dumps([{"type": "x.Pooling", "path": "/etc"}]),
        json.dumps([{"type": "x.Pooling", "path": "\0"}]),
        json.dumps([{"type": "x.Pooling", "path": "a" * 5000}]),
        json.dumps([{"type": "x.Pooling", "path": "missing"}]),
        json.dumps([3]),
        json.dumps({"type": []}),
    ],
)
def test_modules_of_sentence_transformers(encoder_folder: Path, tmp_path: Path, modules: str) -> None:
    with (
        pyllm.load(linked(encoder_folder, tmp_path / "model", modules=modules), num_threads=1) as model,
        pytest.raises(InvalidConfigError),
    ):
        model.embed("the king")


@pytest.mark.parametrize("name", [[], {}, 3, "absent"])
def test_name_of_the_default_prompt(encoder_folder: Path, tmp_path: Path, name: object) -> None:
    content = {"prompts": {"query": "q: "}, "default_prompt_name": name}
    folder = linked(encoder_folder, tmp_path / "model", config_sentence_transformers=content)
    with (
        pyllm.load(folder, num_threads=1) as model,
        pytest.raises(InvalidConfigError, match="default_prompt_name"),
    ):
        model.embed("the king")


@pytest.mark.parametrize(
    "said",
    [
        {"additional_special_tokens": [LONE_SURROGATE]},
        {"mask_token": LONE_SURROGATE},
        {"never_split": [LONE_SURROGATE]},
        {"added_tokens_decoder": {"1000": {"content": LONE_SURROGATE}}},
        {"added_tokens_decoder": {"999999999": {"content": "<far>"}}},
    ],
)
def test_tokens_that_cannot_be(encoder_folder: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    config = json.loads((encoder_folder / "tokenizer_config.json").read_text())
    folder = linked(encoder_folder, tmp_path / "model", tokenizer_config={**config, **said})
    with pytest.raises(TokenizerError):
        load_tokenizer(folder, {"model_type": "bert"})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("model", {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}, "max_input_chars_per_word": 100}),
        (
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {},
            },
        ),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
    ],
)
def test_parts_of_tokenizer_json(tmp_path: Path, part: str, value: dict[str, Any]) -> None:
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    state = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": model}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**state, "post_processor": None, "decoder": None, "truncation": None, "padding": None, part: value})
    )
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path, {}).encode("a b")


@pytest.mark.parametrize("pooling", [3, True, [[]], [3], {}, np.array(2.0), "median"])
def test_pooling_of_a_wrong_kind(encoder: Any, pooling: object) -> None:
    with pytest.raises(InvalidOptionError, match="pooling"):
        encoder.embed("the king", pooling=pooling)


def test_an_array_that_cannot_be_walked(encoder: Any) -> None:
    with pytest.raises(PromptError):
        pyllm.pipeline("feature-extraction", model=encoder)(np.array(3))


@pytest.mark.parametrize(
    "ids", [None, 3, [3], [True], "ab", ["ab"], [["a"]], [[1.5]], [[[1]]], np.array(3), [[-1]], [[]]]
)
def test_ids_of_a_wrong_kind(encoder: Any, ids: Any) -> None:
    with pytest.raises(PromptError):
        encoder.forward(ids, output="hidden")


@pytest.mark.parametrize("types", [3, [0, 1], ["ab"], [[0, 2]], [[0]], [[None, 0]]])
def test_token_types_of_a_wrong_kind(encoder: Any, types: Any) -> None:
    with pytest.raises(PromptError):
        encoder.forward([[1, 2]], types, output="hidden")


@pytest.mark.parametrize("options", [{"prompt": 3}, {"prompt": ["a"]}, {"prompt_name": []}, {"prompt_name": {}}])
def test_prompts_of_a_wrong_kind(encoder: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="prompt"):
        encoder.embed("the king", **options)


def test_options_that_are_arrays_of_one_value() -> None:
    for name in ("eos_token_id", "stop_strings", "bad_words_ids", "sequence_bias"):
        with pytest.raises(InvalidOptionError, match=name):
            GenerationOptions.build({}, {name: np.array(2.0)})


def test_a_language_that_is_no_text() -> None:
    with pytest.raises(TokenizerError, match="language codes"):
        lookup({"de": 1}, [["x"]], "src_lang")  # type: ignore[arg-type]


def test_an_error_about_many_inputs_stays_readable(encoder: Any) -> None:
    with pytest.raises(PromptError, match="and 9900 more"):
        pyllm.pipeline("feature-extraction", model=encoder)([3] * 10_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize(
    ("head", "task"), [("sentiment", "text-classification"), ("token-classification", "token-classification")]
)
def test_outputs_that_are_not_finite(tmp_path: Path, head: str, task: str, value: float) -> None:
    folder = task_models.write_folder(tmp_path / "model", "bert", head)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][:] = value
    tensors["classifier.weight"][::2] *= -1
    task_models._save(folder / "model.safetensors", tensors)
    classifier = pyllm.pipeline(task, model=folder, num_threads=1)
    with pytest.raises(NumericError, match="finite"):
        classifier("the king of the river")
