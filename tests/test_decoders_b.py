"""The decoders around Llama beyond their fixtures: variants against live transformers, hidden states, names of tensors,
fields that are left out, and what a wrong config.json is answered with."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import recorded_logits, toy_config, toy_folder
from stepping import logits_of
from test_decoders_a import PROMPT, logits_of_transformers, message, random_model, reference
from test_model_errors import STRANGE
from toy_decoders_b import CONFIGS_B
from toy_models import CONFIGS

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.errors import CheckpointError, InvalidConfigError, PyllmError, UnsupportedModelError
from pyllm.models import bind, build_network, build_program
from pyllm.models.gemma import Config as GemmaConfig
from pyllm.program.interpreter import Interpreter

SHORT = [1.0, 1.05, 1.2, 1.5]
LONGROPE = {"type": "longrope", "short_factor": SHORT, "long_factor": [9.0] * 4, "factor": 2.0}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"head_dim": 8, "rope_scaling": LONGROPE | {"original_max_position_embeddings": 48}}),
    ("qwen3", {"attention_bias": True, "layer_types": ["sliding_attention", "full_attention"]}),
    ("granite", {"mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 3.0}, "tie_word_embeddings": False}),
    ("smollm3", {"no_rope_layers": [0, 1], "use_sliding_window": False, "attention_bias": True, "mlp_bias": True}),
    ("smollm3", {"no_rope_layers": [0, 0], "rope_theta": 2000000.0}),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh", "attention_bias": True, "num_key_value_heads": 4}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": True}),
    ("gemma2", {"layer_types": ["full_attention", "full_attention"], "query_pre_attn_scalar": 5}),
    ("gemma3_text", {"final_logit_softcapping": 4.0, "sliding_window_pattern": 4, "rope_scaling": None}),
    ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5, "num_key_value_heads": 1}),
    ("olmo", {"attention_bias": False, "num_key_value_heads": 4, "rope_theta": 300.0}),
    ("olmo2", {"attention_bias": True, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
    ("olmo3", {"layer_types": None, "num_hidden_layers": 4}),
    ("mixtral", {"sliding_window": None, "num_experts_per_tok": 1}),
    ("mixtral", {"num_experts_per_tok": 4, "head_dim": 12}),
    (
        "qwen2_moe",
        {"num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 2, "mlp_only_layers": None},
    ),
    ("qwen2_moe", {"qkv_bias": False, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8, "attention_bias": True, "norm_topk_prob": False}),
    ("olmoe", {"norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 4}),
    ("cohere", {"use_qk_norm": False, "attention_bias": True}),
    ("cohere2", {"layer_types": ["full_attention", "full_attention"]}),
    ("glm", {"partial_rotary_factor": 1.0, "attention_bias": False}),
    ("glm4", {"partial_rotary_factor": None, "attention_bias": True, "head_dim": 8}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_equal_transformers(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """Saved by transformers 5 itself: its style of config.json, its names of tensors."""
    config = {key: value for key, value in (CONFIGS[name] | changes).items() if value is not None}
    model = random_model(copy.deepcopy(config))  # transformers fills in what it is given
    model.save_pretrained(tmp_path)
    found, expected = logits_of(reference(tmp_path), PROMPT), logits_of_transformers(model)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", *CONFIGS_B])
def test_hidden_states_equal_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(toy_folder(name), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    checkpoint = open_checkpoint(toy_folder(name))
    program = build_program(checkpoint.config)
    trace = Interpreter(program, bind(program, checkpoint)).forward(PROMPT)[1]
    assert len(program.hidden) == len(expected)
    for buffer, values in zip(program.hidden, expected, strict=True):
        np.testing.assert_allclose(trace[buffer], values[0].numpy(), rtol=0, atol=1e-4)


def stored(name: str) -> dict[str, np.ndarray]:
    """The tensors of a toy model, bfloat16 as float32."""
    with open_checkpoint(toy_folder(name)) as checkpoint:
        arrays = {key: checkpoint.tensor(key).copy() for key in checkpoint.names()}
    return {
        key: (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
        for key, array in arrays.items()
    }


def write(folder: Path, name: str, tensors: dict[str, np.ndarray]) -> Path:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(toy_config(name)))
    return folder


# Prefixes that files of the Hub have or lack, and where a tied head is stored all the same.
STORED_NAMES = [
    *((name, "model.", "", "lm_head.weight") for name in ("qwen3", "granite", "smollm3", "gemma", "cohere", "glm4")),
    *((name, "model.", "", "lm_head.weight") for name in ("phi3-longrope", "olmo3", "mixtral", "qwen2_moe", "olmoe")),
    ("gemma3", "language_model.model.", "model.language_model.", "lm_head.weight"),
    ("gemma3", "language_model.model.", "language_model.", "language_model.lm_head.weight"),
    ("gemma3", "language_model.model.", "model.", "lm_head.weight"),
]


@pytest.mark.parametrize(("name", "prefix", "instead", "head"), STORED_NAMES)
def test_names_found_on_the_hub(tmp_path: Path, name: str, prefix: str, instead: str, head: str) -> None:
    tensors = {key.replace(prefix, instead, 1): array for key, array in stored(name).items()}
    assert f"{instead}embed_tokens.weight" in tensors
    if build_program(toy_config(name)).aliases:
        tensors[head] = tensors[f"{instead}embed_tokens.weight"].copy()
    tensors[f"{instead}layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    prompt, expected = recorded_logits(name)[1]
    found = logits_of(reference(write(tmp_path, name, tensors)), prompt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_of_gemma3_the_other_parts_are_left_alone_and_nothing_else() -> None:
    checkpoint = open_checkpoint(toy_folder("gemma3"))
    bound = bind(build_network(checkpoint.config), checkpoint)
    left = set(checkpoint.names()) - {f"language_model.model.{name}" for name in bound.names()}
    assert left
    assert {name.split(".")[0] for name in left} == {"vision_tower", "multi_modal_projector"}


def test_a_text_config_may_leave_out_what_is_usual() -> None:
    """As the Hub's gemma-3-4b does."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    text |= {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    found = GemmaConfig.from_dict({"model_type": "gemma3", "text_config": text})
    assert (found.vocab_size, found.num_attention_heads, found.num_key_value_heads) == (262208, 8, 4)
    assert (found.head_dim, found.max_position_embeddings, found.query_pre_attn_scalar) == (256, 131072, 256)
    assert [i for i, window in enumerate(found.windows) if not window] == [5, 11, 17, 23, 29]
    full, sliding = (found.ropes[kind].inv_freq for kind in ("full_attention", "sliding_attention"))
    assert (full[0], sliding[0]) == (0.125, 1.0)
    assert full[-1] == pytest.approx(1e6 ** (-254 / 256) / 8, rel=1e-6)
    assert sliding[-1] == pytest.approx(1e4 ** (-254 / 256), rel=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_may_be_stacked(tmp_path: Path, name: str) -> None:
    """As transformers 5 has them in memory: model.layers.1.mlp.experts.gate_up_proj [experts, 2 * ffn, inputs]."""
    names = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    tensors: dict[str, np.ndarray] = {}
    experts: dict[str, dict[str, list[np.ndarray]]] = {}
    for key, array in sorted(stored(name).items()):  # fewer than ten experts, so in their order
        parts = [names.get(part, part) for part in key.split(".")]
        if "experts" in parts:
            experts.setdefault(".".join(parts[:-3]), {}).setdefault(parts[-2], []).append(array)
        else:
            tensors[".".join(parts)] = array
    for prefix, layer in experts.items():
        gate, up, down = (np.stack(layer[part]) for part in ("gate_proj", "up_proj", "down_proj"))
        tensors |= {f"{prefix}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{prefix}.down_proj": down}
    prompt, expected = recorded_logits(name)[1]
    folder = write(tmp_path, name, tensors)
    np.testing.assert_allclose(logits_of(reference(folder), prompt), expected, rtol=0, atol=1e-4)
    with pyllm.load(folder, dtype="float32") as model:
        np.testing.assert_allclose(model.logits(prompt), expected, rtol=0, atol=1e-4)
    tensors[f"{prefix}.down_proj"] = down[1:]
    with pytest.raises(CheckpointError, match=rf"mlp.experts.{len(down) - 1}.down_proj.weight is missing"):
        reference(write(tmp_path, name, tensors))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3", {"max_window_layers": 5, "layer_types": ["full_attention", "sliding_attention"]}),
        ("smollm3", {"no_rope_layer_interval": None, "no_rope_layers": [1, 0]}),
        ("gemma", {"hidden_act": "gelu_pytorch_tanh"}),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention"], "hidden_activation": None}),
        ("gemma3_text", CONFIGS_B["gemma3"]["text_config"] | {"rope_scaling": None, "model_type": "gemma3_text"}),
        ("phi3-longrope", {"rope_scaling": CONFIGS_B["phi3-longrope"]["rope_scaling"] | {"type": "su"}}),
        ("qwen2_moe", {"mlp_only_layers": None, "decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0], "decoder_sparse_step": None}),
        ("cohere2", {"sliding_window_pattern": None, "layer_types": ["sliding_attention", "full_attention"]}),
        ("glm", {"attention_bias": True, "partial_rotary_factor": 0.5}),
    ],
)
def test_the_same_model_in_other_fields(name: str, changes: dict[str, Any]) -> None:
    assert build_program(toy_config(name) | changes) == build_program(toy_config(name))


@pytest.mark.parametrize(
    ("name", "changes", "problems"),
    [
        ("qwen3", {"head_dim": 9, "vocab_size": -1}, ["need an even head_dim, got 9", "vocab_size must be"]),
        ("qwen3", {"layer_types": ["sliding"]}, ["layer_types must be 2 of full_attention and sliding_attention"]),
        ("granite", {"logits_scaling": 0, "embedding_multiplier": "12"}, ["logits_scaling must", "got '12'"]),
        ("smollm3", {"no_rope_layers": [1]}, ["no_rope_layers must be 2 of 0 and 1, got [1]"]),
        ("smollm3", {"no_rope_layer_interval": -1}, ["no_rope_layer_interval must be a whole number from 1"]),
        ("gemma", {"hidden_size": 0}, ["hidden_size must be a whole number from 1 to 2147483647, got 0"]),
        ("gemma2", {"attn_logit_softcapping": -50.0}, ["attn_logit_softcapping must be a number > 0, got -50.0"]),
        ("gemma2", {"sliding_window": 0}, ["sliding_window must be a whole number from 1", "sliding layers need a"]),
        ("gemma3_text", {"sliding_window_pattern": 0}, ["sliding_window_pattern must be a whole number from 1"]),
        ("gemma3_text", {"rope_local_base_freq": -1}, ["rope_theta must be a number from 0.001"]),
        ("gemma3", {"text_config": None}, ["text_config must be an object, got None"]),
        ("phi3", {"num_key_value_heads": 3}, ["num_attention_heads must be a multiple of num_key_value_heads"]),
        ("phi3-longrope", {"partial_rotary_factor": 1.0}, ["short_factor must have 8 numbers", "long_factor must"]),
        ("phi3-longrope", {"original_max_position_embeddings": None}, ["needs original_max_position_embeddings"]),
        ("olmo2", {"hidden_size": 33}, ["hidden_size must be a multiple of num_attention_heads, got 33 and 4"]),
        ("mixtral", {"num_experts_per_tok": 5}, ["num_experts_per_tok may be at most num_local_experts, got 5 and 4"]),
        ("mixtral", {"num_local_experts": 0}, ["num_local_experts must be a whole number from 1"]),
        ("qwen2_moe", {"mlp_only_layers": [2]}, ["mlp_only_layers must be a list of whole numbers from 0 to 1"]),
        ("qwen3_moe", {"num_experts": 2**30}, ["all layers may have 131072 experts, 2 layers of 1073741824 are more"]),
        ("qwen3_moe", {"decoder_sparse_step": 0}, ["decoder_sparse_step must be a whole number from 1"]),
        ("cohere", {"logit_scale": float("nan")}, ["logit_scale must be a number > 0, got nan"]),
        ("glm4", {"partial_rotary_factor": 0.01}, ["partial_rotary_factor must rotate 2, 4, ... or 12 elements"]),
    ],
)
def test_invalid_configurations(name: str, changes: dict[str, Any], problems: list[str]) -> None:
    found = message(InvalidConfigError, toy_config(name) | changes)
    assert all(problem in found for problem in problems), found
    assert found.endswith("Correct the file")


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("qwen3", {"hidden_act": "mish"}, "hidden_act 'mish' (supported: relu, gelu,"),
        ("gemma2", {"hidden_activation": "xielu"}, "hidden_activation 'xielu'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"quantization_config": {"quant_method": "fp8"}}, "weights quantised by 'fp8'"),
        ("mixtral", {"rope_scaling": {"type": "longcat"}}, "rope_type 'longcat'"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmo3", {"rope_parameters": {"full_attention": {"rope_type": "x"}}, "rope_scaling": None}, "rope_type 'x'"),
    ],
)
def test_unsupported_variants_are_named(name: str, changes: dict[str, Any], problem: str) -> None:
    assert problem in message(UnsupportedModelError, toy_config(name) | changes)


@pytest.mark.parametrize("name", CONFIGS_B)
def test_any_value_gives_a_program_or_a_typed_error(name: str) -> None:
    config = toy_config(name)
    variants = [config | {key: value} for key in config for value in STRANGE]
    for nested in {"text_config", "rope_parameters", "rope_scaling"} & config.keys():
        variants += [config | {nested: config[nested] | {key: value}} for key in config[nested] for value in STRANGE]
    for variant in variants:
        with contextlib.suppress(PyllmError):
            str(build_program(variant))
