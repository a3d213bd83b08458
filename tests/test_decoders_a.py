"""GPT-J to StableLM beyond their fixtures: variants against live transformers, hidden states, names of tensors and
fields, and what a wrong config.json is answered with."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import recorded_logits, toy_config, toy_folder
from stepping import logits_of
from test_model_errors import STRANGE
from toy_decoders_a import CONFIGS_A

from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.errors import InvalidConfigError, PyllmError, UnsupportedModelError
from pyllm.models import bind, build_program
from pyllm.models.alibi import bloom_slopes, mpt_slopes
from pyllm.program.interpreter import Interpreter

PROMPT = np.random.RandomState(3).randint(0, 131, size=45).tolist()


def reference(folder: Path) -> ReferenceRunner:
    checkpoint = open_checkpoint(folder)
    program = build_program(checkpoint.config)
    return ReferenceRunner(program, bind(program, checkpoint))


def random_model(config: dict[str, Any]) -> Any:
    """transformers' model of a configuration, float32, with weights large enough to tell wirings apart."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            one = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape) * scale + (1.0 if one else 0.0))
    return model


def logits_of_transformers(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


VARIANTS = [
    ("gptj", {"tie_word_embeddings": True, "n_inner": None, "rotary_dim": 2}),
    ("codegen", {"n_embd": 32, "n_head": 8, "rotary_dim": 4, "activation_function": "gelu"}),
    ("codegen", {"n_head": 2, "rotary_dim": 12}),
    ("gpt-neo", {"attention_types": [[["local"], 2], [["global"], 1]], "intermediate_size": None}),
    ("gpt-neox", {"rope_scaling": {"type": "linear", "factor": 3.0}, "rotary_pct": 1.0}),
    ("gpt-neox", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0}, "rotary_pct": 0.5}),
    ("opt", {"_remove_final_layer_norm": True, "word_embed_proj_dim": 10, "activation_function": "gelu"}),
    ("opt-350m", {"layer_norm_elementwise_affine": False, "word_embed_proj_dim": 24}),
    ("bloom", {"n_embed": 30, "hidden_size": 30, "num_attention_heads": 10}),
    ("falcon-7b", {"multi_query": False, "num_attention_heads": 2, "rope_parameters": {"rope_theta": 50.0}}),
    ("falcon-7b", {"alibi": True, "num_attention_heads": 8, "activation": "relu"}),
    ("falcon-7b", {"parallel_attn": False}),
    ("falcon-40b", {"alibi": True, "num_kv_heads": 1, "bias": False}),
    ("falcon-40b", {"num_kv_heads": None, "ffn_hidden_size": None}),
    ("mpt", {"d_model": 28, "n_heads": 7, "attn_config": None}),
    ("starcoder", {"n_head": 3, "scale_attn_weights": False}),
    ("starcoder2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 90.0, "factor": 2.0}, "rope_theta": None}),
    ("phi", {"tie_word_embeddings": True, "rope_theta": 300.0, "hidden_act": "relu"}),
    ("stablelm", {"use_parallel_residual": True, "hidden_act": "gelu", "rope_theta": 300.0}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_equal_transformers(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """Saved by transformers 5 itself: its style of config.json, its names of tensors."""
    model = random_model(CONFIGS_A[name] | changes)
    model.save_pretrained(tmp_path)
    found, expected = logits_of(reference(tmp_path), PROMPT), logits_of_transformers(model)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", *CONFIGS_A])
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


@pytest.mark.filterwarnings("ignore")
def test_mpt_with_normalised_queries_and_steeper_slopes(tmp_path: Path) -> None:
    """transformers reads neither field: a hook normalises, and its slopes are replaced."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    config = CONFIGS_A["mpt-scaled"] | {"attn_config": {"alibi_bias_max": 16}}
    model = random_model(config)
    model.save_pretrained(tmp_path)
    width, norms = config["d_model"], {}
    for index, block in enumerate(model.transformer.blocks):
        for part, place in (("q", 0), ("k", 1)):
            weight = 1 + 0.3 * torch.randn(width)
            norms[f"transformer.blocks.{index}.attn.{part}_ln.weight"] = weight

            def normalise(_m: Any, _i: Any, out: Any, weight: Any = weight, at: int = place * width) -> Any:
                part = torch.nn.functional.layer_norm(out[..., at : at + width], (width,), weight, None, 1e-5)
                return torch.cat([out[..., :at], part, out[..., at + width :]], -1)

            block.attn.Wqkv.register_forward_hook(normalise)
    build = model.transformer.build_mpt_alibi_tensor
    model.transformer.build_mpt_alibi_tensor = lambda heads, length, device=None: build(heads, length, 16, device)
    save_file(load_file(tmp_path / "model.safetensors") | norms, tmp_path / "model.safetensors")
    written = json.loads((tmp_path / "config.json").read_text())
    written["attn_config"] |= {"qk_ln": True}
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = logits_of(reference(tmp_path), PROMPT)
    np.testing.assert_allclose(found, logits_of_transformers(model), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_slopes_equal_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    for heads in (*range(1, 34), 71, 112, 128):
        theirs = _get_alibi_slopes(heads, "cpu").numpy()
        np.testing.assert_allclose(bloom_slopes(heads), theirs, rtol=1e-6)
        for bias_max in (8, 16):
            theirs = -build_mpt_alibi_tensor(heads, 2, bias_max)[:, 0, 0].numpy()
            np.testing.assert_allclose(mpt_slopes(heads, bias_max), theirs, rtol=1e-6)


# Prefixes that files of the Hub have or lack, other names of the head, tensors of old files that are no weights.
STORED_NAMES = [
    ("gptj", "transformer.", "", {}, ["h.0.attn.bias", "h.0.attn.masked_bias"]),
    ("codegen", "transformer.", "", {}, ["h.1.attn.causal_mask"]),
    ("gpt-neo", "transformer.", "", {}, ["h.0.attn.attention.bias", "h.2.attn.attention.masked_bias"]),
    ("gpt-neox", "gpt_neox.", "", {"embed_out.weight": "lm_head.weight"}, ["layers.0.attention.masked_bias"]),
    ("gpt-neox", "gpt_neox.", "", {"lm_head.weight": "embed_out.weight"}, ["layers.0.attention.rotary_emb.inv_freq"]),
    ("opt", "model.decoder.", "decoder.", {}, ["decoder.version"]),
    ("opt-350m", "model.decoder.", "", {}, []),
    ("bloom", "transformer.", "", {}, ["score.weight"]),
    ("falcon-40b", "transformer.", "", {}, ["h.0.self_attention.rotary_emb.inv_freq"]),
    ("mpt", "transformer.", "", {}, []),
    ("starcoder", "transformer.", "", {}, ["h.0.attn.bias"]),
    ("starcoder2", "model.", "", {}, ["layers.0.self_attn.rotary_emb.inv_freq"]),
    ("phi", "model.", "", {}, ["layers.0.self_attn.rotary_emb.inv_freq"]),
    ("stablelm", "model.", "", {}, ["layers.1.self_attn.rotary_emb.inv_freq"]),
]


@pytest.mark.parametrize(("name", "prefix", "instead", "renamed", "spare"), STORED_NAMES)
def test_names_found_on_the_hub(
    tmp_path: Path, name: str, prefix: str, instead: str, renamed: dict[str, str], spare: list[str]
) -> None:
    """Another prefix, another name of the head, a tied head that is stored all the same, buffers."""
    numpy = pytest.importorskip("safetensors.numpy")
    checkpoint = open_checkpoint(toy_folder(name))
    arrays = {key: checkpoint.tensor(key).copy() for key in checkpoint.names()}
    assert any(key.startswith(prefix) for key in arrays)
    program = build_program(checkpoint.config)
    tensors = {renamed.get(key, key.replace(prefix, instead, 1)): array for key, array in arrays.items()}
    for main, alias in program.aliases:
        tensors[alias] = next(array for key, array in tensors.items() if key.endswith(main))
    tensors |= {key: np.zeros((1, 4), np.float32) for key in spare}
    tensors = {  # bfloat16 comes as bits
        key: (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
        for key, array in tensors.items()
    }
    numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(toy_config(name)))
    prompt, expected = recorded_logits(name)[1]
    np.testing.assert_allclose(logits_of(reference(tmp_path), prompt), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gptj", {"n_layer": None, "num_hidden_layers": 2, "n_embd": None, "hidden_size": 24}),
        ("gpt-neo", {"num_layers": None, "num_hidden_layers": 3, "num_heads": None, "num_attention_heads": 4}),
        ("gpt-neox", {"rotary_pct": None, "rotary_emb_base": None, "partial_rotary_factor": 0.25}),
        ("gpt-neox", {"rotary_pct": None, "rope_parameters": {"partial_rotary_factor": 0.25}}),
        ("bloom", {"n_embed": None, "num_attention_heads": None, "n_head": 3}),
        ("falcon-40b", {"parallel_attn": True, "multi_query": False, "num_ln_in_parallel_attn": 2}),
        ("falcon-7b", {"num_kv_heads": 4, "num_ln_in_parallel_attn": 1}),
        ("mpt", {"n_heads": None, "num_attention_heads": 3, "attn_config": None}),
        ("phi", {"rope_theta": None, "partial_rotary_factor": None}),
        ("stablelm", {"partial_rotary_factor": None, "rope_parameters": {"partial_rotary_factor": 0.25}}),
    ],
)
def test_the_same_model_in_other_fields(name: str, changes: dict[str, Any]) -> None:
    assert build_program(toy_config(name) | changes) == build_program(toy_config(name))


def message(kind: type[Exception], config: dict[str, Any]) -> str:
    with pytest.raises(kind) as error:
        build_program(config)
    assert str(error.value).startswith("[config.json] ")
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "problems"),
    [
        ("gptj", {"n_head": 5}, ["n_embd must be a multiple of n_head, got 24 and 5"]),
        ("gptj", {"rotary_dim": 7}, ["rotary_dim must be an even number up to the head width 6, got 7"]),
        ("gptj", {"hidden_size": 12}, ["hidden_size and n_embd are the same field, got 12 and 24"]),
        ("codegen", {"n_embd": 30, "n_head": 5}, ["n_embd must be a multiple of 4, got 30"]),
        ("gpt-neo", {"attention_types": [[["global", "all"], 1]]}, ["attention_types must be like [[["]),
        ("gpt-neo", {"num_layers": 2}, ["attention_types must name 2 layers, as num_layers does, it names 3"]),
        ("gpt-neo", {"attention_types": [[["global"], 10**30]]}, ["attention_types must name 3 layers"]),
        ("gpt-neox", {"rotary_pct": 0.4, "vocab_size": -1}, ["must rotate 2, 4, ... or 8", "vocab_size must be"]),
        ("opt", {"num_attention_heads": 0, "ffn_dim": "wide"}, ["num_attention_heads must be", "ffn_dim must be"]),
        ("bloom", {"n_embed": 20}, ["n_embed and hidden_size are the same field, got 20 and 24"]),
        ("falcon-40b", {"num_kv_heads": 3}, ["num_attention_heads must be a multiple of num_kv_heads, got 4 and 3"]),
        ("falcon-7b", {"num_attention_heads": 8}, ["rotary positions need an even"]),
        ("mpt", {"attn_config": 3}, ["attn_config must be an object, got 3"]),
        ("mpt", {"attn_config": {"alibi_bias_max": -8}}, ["attn_config.alibi_bias_max must be a number > 0, got -8"]),
        ("starcoder", {"n_embd": 2**31}, ["n_embd must be a whole number from 1 to 2147483647, got 2147483648"]),
        ("starcoder2", {"sliding_window": -4}, ["sliding_window must be a whole number from 0"]),
        ("phi", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor must rotate 2, 4, ... or 8 elements"]),
        ("stablelm", {"num_key_value_heads": 2}, ["num_attention_heads must be a multiple of num_key_value_heads"]),
    ],
)
def test_invalid_configurations(name: str, changes: dict[str, Any], problems: list[str]) -> None:
    found = message(InvalidConfigError, toy_config(name) | changes)
    assert all(problem in found for problem in problems), found
    assert found.endswith("Correct the file")


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("gptj", {"activation_function": "mish"}, "activation_function 'mish' (supported: relu, gelu,"),
        ("bloom", {"n_inner": 50}, "n_inner other than 4 * hidden_size (50)"),
        ("falcon-40b", {"parallel_attn": False}, "new_decoder_architecture without parallel_attn"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn 2 without new_decoder_architecture"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv 6"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_config.attn_type 'multiquery_attention'"),
        ("mpt", {"attn_config": {"alibi": False}}, "attn_config.alibi False"),
        ("mpt", {"no_bias": False, "logit_scale": "inv_sqrt_d_model"}, "no_bias False"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type 'rmsnorm' (supported: low_precision_layernorm, layernorm)"),
        ("starcoder", {"add_cross_attention": True}, "add_cross_attention"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type 'gated' (supported: default)"),
        ("falcon-7b", {"rope_scaling": {"type": "mystery"}}, "rope_type 'mystery'"),
    ],
)
def test_unsupported_variants_are_named(name: str, changes: dict[str, Any], problem: str) -> None:
    assert problem in message(UnsupportedModelError, toy_config(name) | changes)


@pytest.mark.parametrize("name", CONFIGS_A)
def test_any_value_gives_a_program_or_a_typed_error(name: str) -> None:
    config = toy_config(name)
    variants = [config | {key: value} for key in config for value in STRANGE]
    for nested in {"attn_config", "rope_parameters"} & config.keys():
        variants += [config | {nested: config[nested] | {key: value}} for key in config[nested] for value in STRANGE]
    for variant in variants:
        with contextlib.suppress(PyllmError):
            str(build_program(variant))
