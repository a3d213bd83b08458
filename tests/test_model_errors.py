"""What a wrong config.json or a checkpoint that does not match it is answered with: everything at once, by name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import toy_config, toy_folder
from safetensors.numpy import load_file, save_file
from stepping import logits_of

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.errors import CheckpointError, InvalidConfigError, PyllmError, UnsupportedModelError
from pyllm.models import REGISTRY, bind, build_program

Tensors = dict[str, np.ndarray]


def bind_tensors(tmp_path: Path, name: str, tensors: Tensors, **changes: Any) -> Any:
    """Binds `tensors` under the configuration of a toy model; returns (program, bound)."""
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((toy_folder(name) / "config.json").read_text())
    program = build_program(toy_config(name) | changes)
    return program, bind(program, open_checkpoint(tmp_path))


def stored(name: str) -> Tensors:
    return load_file(toy_folder(name) / "model.safetensors")


def message(error: type[PyllmError], config: dict[str, Any]) -> str:
    with pytest.raises(error) as caught:
        build_program(config)
    return str(caught.value)


def test_all_wrong_tensors_are_listed(tmp_path: Path) -> None:
    tensors = stored("gpt2")
    del tensors["h.0.ln_1.weight"], tensors["wpe.weight"]
    tensors["h.1.attn.c_attn.weight"] = np.ascontiguousarray(tensors["h.1.attn.c_attn.weight"].T)
    tensors["h.2.ln_1.weight"] = np.zeros(48, np.float32)
    tensors["ln_f.bias"] = tensors["ln_f.bias"].astype(np.float64)
    with pytest.raises(CheckpointError) as caught:
        bind_tensors(tmp_path, "gpt2", tensors)
    for expected in (
        "h.0.ln_1.weight is missing, it must be [48]",
        "wpe.weight is missing, it must be [96, 48]",
        "h.1.attn.c_attn.weight is [144, 48], it must be [48, 144]",
        "h.2.ln_1.weight [48] is not part of the model",
        "ln_f.bias is stored as F64, weights must be one of F32, F16, BF16",
    ):
        assert expected in str(caught.value)


def test_a_lying_number_of_layers_gives_a_message_of_bounded_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        bind_tensors(tmp_path, "gpt2", stored("gpt2"), n_layer=4096)
    assert len(str(caught.value)) < 100_000


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    tensors = stored("llama")
    del tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing, it must be \[131, 48\]"):
        bind_tensors(tmp_path, "llama", tensors)


def test_a_tied_head_may_be_stored_twice_if_it_is_the_same(tmp_path: Path) -> None:
    tensors = stored("gpt2")
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    bind_tensors(tmp_path, "gpt2", tensors)
    tensors["lm_head.weight"][3, 5] += 1
    with pytest.raises(CheckpointError, match=r'lm_head.weight must equal wte.weight.*"tie_word_embeddings": false'):
        bind_tensors(tmp_path, "gpt2", tensors)


def test_a_tied_head_may_stand_for_the_embedding(tmp_path: Path) -> None:
    tensors = stored("gpt2")
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    _, bound = bind_tensors(tmp_path, "gpt2", tensors)
    np.testing.assert_array_equal(bound.tensor("wte.weight"), tensors["lm_head.weight"])


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("llama", "model.")])
def test_prefixes_and_buffers_do_not_matter(tmp_path: Path, name: str, prefix: str) -> None:
    """The other style of names, with the masks and frequencies that old checkpoints hold."""
    source = open_checkpoint(toy_folder(name))
    program = build_program(source.config)
    expected = logits_of(ReferenceRunner(program, bind(program, source)), [5, 6, 7])
    tensors = stored(name)
    bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if prefix + "norm.weight" in tensors:
        renamed = bare | {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}
    else:
        masks = {"h.0.attn.bias": np.ones((1, 1, 96, 96), np.uint8), "h.0.attn.masked_bias": np.float32([-1e4])}
        renamed = {prefix + key: value for key, value in (bare | masks).items()}
        renamed["score.weight"] = np.zeros((2, 48), np.float32)  # GPT2ForSequenceClassification's own head
    program, bound = bind_tensors(tmp_path, name, renamed)
    np.testing.assert_array_equal(logits_of(ReferenceRunner(program, bound), [5, 6, 7]), expected)


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    tensors = stored("gpt2")
    tensors["transformer.ln_f.weight"] = tensors["ln_f.weight"] + 1
    with pytest.raises(CheckpointError, match=r"ln_f.weight and .*ln_f.weight are the same tensor of the model"):
        bind_tensors(tmp_path, "gpt2", tensors)


def test_unknown_families_are_answered_with_the_known_ones() -> None:
    known = f"supported are {', '.join(REGISTRY)}"
    found = message(UnsupportedModelError, {"model_type": "gpt-2"})
    assert found == f"[config.json] there is no model_type 'gpt-2' here, {known}; the nearest is 'gpt2'"
    assert "nearest" not in message(UnsupportedModelError, {"model_type": "zz"})
    assert "; the nearest is 'qwen3'" in message(UnsupportedModelError, {"model_type": "Qwen3"})
    assert f"it is missing; {known}" in message(InvalidConfigError, {"n_embd": 4})
    assert f"got 3; {known}" in message(InvalidConfigError, {"model_type": 3})


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        (
            {"n_embd": "48", "n_layer": True},
            ["n_embd must be a whole number from 1", "got '48'", "n_layer must", "True"],
        ),
        ({"n_layer": 0, "n_head": -1, "n_positions": 2**40}, ["n_layer must", "n_head must", "n_positions must"]),
        ({"n_head": 7}, ["n_embd must be a multiple of n_head, got 48 and 7"]),
        ({"vocab_size": None, "n_positions": None}, ["vocab_size is missing", "n_positions is missing"]),
        ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon must be a number > 0, got 0"]),
        ({"layer_norm_epsilon": float("nan"), "n_inner": 1.5}, ["got nan", "n_inner must be", "got 1.5"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings must be true or false, got 'yes'"]),
        ({"activation_function": 3}, ["activation_function must be a text, got 3"]),
    ],
)
def test_invalid_gpt2_configurations(changes: dict[str, Any], problems: list[str]) -> None:
    found = message(InvalidConfigError, toy_config("gpt2") | changes)
    assert all(problem in found for problem in problems), found


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"num_key_value_heads": 3}, ["num_attention_heads must be a multiple of num_key_value_heads, got 4 and 3"]),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, ["hidden_size must be a multiple of num_attention"]),
        ({"head_dim": 7}, ["rotary positions need an even head_dim, got 7"]),
        ({"head_dim": -8, "hidden_size": 0}, ["head_dim must be a whole number", "hidden_size must be a whole number"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers must be a whole number from 1 to 4096"]),
        ({"rope_scaling": [1]}, ["rope_scaling must be an object, got [1]"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_type 'linear' needs factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor must be a number from 0.001 to 1e+12, got 0"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ["needs low_freq_factor", "needs original_max"]),
        (
            {"rope_theta": -1.0, "rms_norm_eps": "x"},
            ["rope_theta must be a number from", "rms_norm_eps must be a number"],
        ),
        ({"rope_parameters": {"rope_theta": 5.0}}, ["rope_theta must be given once, it is 10000.0 and"]),
    ],
)
def test_invalid_llama_configurations(changes: dict[str, Any], problems: list[str]) -> None:
    found = message(InvalidConfigError, toy_config("llama") | changes)
    assert all(problem in found for problem in problems), found


def test_invalid_qwen2_configurations() -> None:
    config = toy_config("qwen2-window")
    assert "layer_types must be 2 of" in message(InvalidConfigError, config | {"layer_types": ["full_attention"]})
    assert "sliding layers need" in message(InvalidConfigError, config | {"sliding_window": None})


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "mish"}, "activation_function 'mish' (supported: relu, gelu,"),
        ("gpt2", {"quantization_config": {"quant_method": "quip"}}, "weights quantised by 'quip'"),
        ("llama", {"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope' (supported: default, linear, dynamic"),
        ("llama", {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "that differ by layer"),
        ("llama", {"hidden_act": "mish"}, "hidden_act 'mish'"),
    ],
)
def test_unsupported_variants_are_named(name: str, changes: dict[str, Any], problem: str) -> None:
    assert problem in message(UnsupportedModelError, toy_config(name) | changes)


def test_layer_types_and_windows_agree() -> None:
    """transformers 5 writes layer_types, older ones max_window_layers: the same program."""
    config = toy_config("qwen2-window")
    types = {"layer_types": ["full_attention", "sliding_attention"]}
    assert build_program(config | types) == build_program(config)
    assert "window" not in str(build_program(config | {"use_sliding_window": False}))


STRANGE = [
    None,
    True,
    "8",
    "",
    -1,
    0,
    1,
    2**31,
    10**30,
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    [1],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("name", ["gpt2", "llama-rope-llama3", "llama-rope-yarn", "qwen2-window", "mistral"])
def test_any_value_gives_a_program_or_a_typed_error(name: str) -> None:
    config = toy_config(name)
    variants = [config | {key: value} for key in config for value in STRANGE]
    for nested in {"rope_scaling", "rope_parameters"} & config.keys():
        variants += [config | {nested: config[nested] | {key: value}} for key in config[nested] for value in STRANGE]
    for variant in variants:
        with contextlib.suppress(PyllmError):
            str(build_program(variant))
