"""Quantised checkpoints as they are found: what is read equals what was written, in every layout and kind of model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, toy_folder
from quantized_layouts import (
    Layout,
    awq_gemm,
    awq_gemv,
    bnb_int8,
    bnb_nf4,
    compressed_config,
    gptq,
    int_quantized,
    matrices_of,
    of_grid,
    pack_quantized,
    write_quantized,
)
from safetensors.numpy import load_file, save_file

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.checkpoint.codes import floats_of
from pyllm.checkpoint.quantized import QuantizedCheckpoint, quantized_view
from pyllm.errors import CheckpointError, InvalidConfigError, PyllmError, UnsupportedModelError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
BNB = {"quant_method": "bitsandbytes"}

# layout, quantization_config, and how its matrices are seen: (bits, zero points); 0 bits: floats only.
LAYOUTS: dict[str, tuple[Layout, dict[str, Any], tuple[int, bool]]] = {
    "gptq": (of_grid(gptq, 4, 32), GPTQ, (4, False)),
    "gptq asymmetric": (of_grid(gptq, 4, 32, symmetric=False, g_idx=False), GPTQ | {"sym": False}, (4, True)),
    "gptq v2": (of_grid(gptq, 4, 32, symmetric=False, v2=True), GPTQ | {"checkpoint_format": "gptq_v2"}, (4, True)),
    "gptq whole": (of_grid(gptq, 4, -1), GPTQ | {"group_size": -1}, (4, False)),
    "gptq desc_act": (of_grid(gptq, 4, 32, shuffled=True), GPTQ | {"desc_act": True}, (0, False)),
    "gptq 8 bit": (of_grid(gptq, 8, 32), GPTQ | {"bits": 8}, (0, False)),
    "gptq 8 bit whole": (of_grid(gptq, 8, -1), GPTQ | {"bits": 8, "group_size": -1}, (8, False)),
    "awq gemm": (of_grid(awq_gemm, 4, 32, symmetric=False), AWQ, (4, True)),
    "awq gemv": (of_grid(awq_gemv, 4, 16, symmetric=False), AWQ | {"group_size": 16, "version": "GEMV"}, (4, True)),
    "pack-quantized": (of_grid(pack_quantized, 4, 32), compressed_config("pack-quantized", 4, 32, True), (4, False)),
    "pack-quantized asymmetric": (
        of_grid(pack_quantized, 4, 32, symmetric=False),
        compressed_config("pack-quantized", 4, 32, False),
        (4, True),
    ),
    "pack-quantized channel": (
        of_grid(pack_quantized, 4, -1),
        compressed_config("pack-quantized", 4, -1, True),
        (4, False),
    ),
    "pack-quantized ordered": (
        of_grid(pack_quantized, 4, 16, shuffled=True),
        compressed_config("pack-quantized", 4, 16, True),
        (0, False),
    ),
    "pack-quantized 8 bit": (
        of_grid(pack_quantized, 8, -1),
        compressed_config("pack-quantized", 8, -1, True),
        (8, False),
    ),
    "int-quantized": (of_grid(int_quantized, 8, -1), compressed_config("int-quantized", 8, -1, True), (8, False)),
    "int-quantized asymmetric": (
        of_grid(int_quantized, 8, -1, symmetric=False),
        compressed_config("int-quantized", 8, -1, False),
        (0, False),
    ),
    "bitsandbytes int8": (bnb_int8, BNB | {"load_in_8bit": True}, (8, False)),
    "bitsandbytes nf4": (bnb_nf4, BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, (0, False)),
}


def multiple_of(label: str) -> int:
    """AWQ's words leave no room for odd numbers of outputs."""
    return 8 if label.startswith("awq") else 1


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    with pyllm.load(folder, device="reference") as model:
        return model.logits(ids)


@pytest.mark.parametrize("label", LAYOUTS)
def test_weights_are_what_was_written(label: str, tmp_path: Path) -> None:
    layout, config, (bits, zeros) = LAYOUTS[label]
    plain, quantized = write_quantized(toy_folder("llama"), tmp_path, layout, config, multiple=multiple_of(label))
    with open_checkpoint(plain) as wanted, open_checkpoint(quantized) as stored:
        view = quantized_view(stored)
        assert sorted(view.names()) == sorted(wanted.names())
        kinds = [kind for name in view.names() if (kind := view.kind(name)) is not None]
        assert {kind.bits for kind in kinds} == {bits}
        assert any(kind.zeros for kind in kinds) == zeros
        for name in view.names():
            got = view.tensor(name)
            assert got.shape == view.shape(name) == wanted.shape(name)
            np.testing.assert_allclose(got.astype(np.float32), wanted.tensor(name), rtol=3e-7, atol=0, err_msg=name)
            codes = view.codes(name)
            assert (codes is None) == (not bits or view.kind(name) is None)
            if codes is not None:
                np.testing.assert_array_equal(codes.dequantized(), got)
                halves = codes.regrouped(16) if codes.group_size % 16 == 0 else codes
                np.testing.assert_array_equal(halves.rows(3, 11).dequantized(), got[3:11])
            view.release(name)


MODELS = ("gpt2", "phi3", "qwen2", "qwen2_moe")  # stored [k, n]; fused; biases; experts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("label", ["gptq", "pack-quantized asymmetric", "bitsandbytes int8", "bitsandbytes nf4"])
def test_models_compute_with_the_dequantised_weights(label: str, name: str, tmp_path: Path) -> None:
    layout, config, _ = LAYOUTS[label]
    source = unstacked_copy(toy_folder(name), tmp_path / "source")
    plain, quantized = write_quantized(source, tmp_path, layout, config, multiple=multiple_of(label))
    ids = [5, 17, 80, 3, 99, 41]
    wanted = reference_logits(plain, ids)
    np.testing.assert_allclose(reference_logits(quantized, ids), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def unstacked_copy(source: Path, target: Path) -> Path:
    """A folder with a tensor for each expert, as quantisers write them, not one for all."""
    from pyllm.models.stacked import UnstackedCheckpoint

    with open_checkpoint(source) as whole:
        view = UnstackedCheckpoint(whole)
        if sorted(view.names()) == sorted(whole.names()):
            return source
        target.mkdir()
        tensors = {name: floats_of(view.tensor(name)) for name in view.names()}
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def written(tmp_path: Path, label: str = "gptq", name: str = "llama") -> Path:
    layout, config, _ = LAYOUTS[label]
    return write_quantized(toy_folder(name), tmp_path, layout, config, multiple=multiple_of(label))[1]


def change(folder: Path, **tensors: Any) -> None:
    """Replaces tensors by their names' ends (a function of the old one; None: removes it), in one module or more."""
    content = load_file(folder / "model.safetensors")
    for end, new in tensors.items():
        for name in [name for name in content if name.endswith(end)][:2]:
            old = content.pop(name)
            if new is not None:
                content[name] = np.ascontiguousarray(new(old))
    save_file(content, folder / "model.safetensors")


def set_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        pyllm.load(folder, device="reference")
    return str(caught.value)


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    folder = written(tmp_path)
    change(folder, qzeros=None, scales=lambda old: old[:, :-1], g_idx=lambda old: old.astype(np.int16))
    message = refused(folder)
    assert message.startswith("[checkpoint] quantised tensors must be those of gptq, 4 bit, groups of 32, these are")
    assert message.count("qzeros is missing") == 2
    folder = written(tmp_path / "other")
    change(folder, qzeros=lambda old: old[:1], g_idx=lambda old: old[:-1].astype(np.int16))
    assert refused(folder).count("stored as I16, it must be I32 or I64") == 2


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        ("gptq", {"g_idx": lambda old: old + 9}, "must name groups below 2, it has 9 to 10"),
        ("gptq", {"g_idx": lambda old: old[:-1]}, r"qweight is \[6, 48\]|scales|must be"),
        ("gptq", {"scales": lambda old: old * np.float16("nan")}, "scales must hold finite scales, 144 of 144 are not"),
        ("gptq", {"scales": lambda old: old[:1]}, r"scales is \[1, 48\], it must be \[3, 48\]"),
        ("gptq", {"qweight": lambda old: old.astype(np.int64)}, "qweight is stored as I64, it must be I32 or U32"),
        ("gptq", {"qweight": lambda old: old[:0]}, "must"),
        ("gptq", {"qweight": None}, "qweight is missing"),
        ("awq gemm", {"qzeros": lambda old: old[:, :-1]}, r"qzeros is \[3, 5\], it must be \[3, 6\]"),
        ("awq gemv", {"scales": lambda old: old[:, :3]}, r"scales is \[48, 3\], it must be \[48, 16\]"),
        (
            "pack-quantized",
            {"weight_shape": lambda old: old * 2},
            r"weight_shape is \[96, 160\] for weight_packed \[48, 10\]",
        ),
        ("pack-quantized", {"weight_shape": None}, "weight_shape is missing"),
        ("pack-quantized", {"weight_scale": lambda old: old[:, :1]}, "none of what quantization_config says"),
        ("pack-quantized", {"weight_scale": lambda old: old * np.inf}, "finite scales"),
        ("pack-quantized asymmetric", {"weight_zero_point": lambda old: old[:-1]}, "weight_zero_point is"),
        ("int-quantized", {"weight_scale": None}, "weight_scale is missing"),
        ("int-quantized asymmetric", {"weight_zero_point": lambda old: old[:-1]}, "weight_zero_point is"),
        ("bitsandbytes int8", {"SCB": None}, "SCB is missing"),
        ("bitsandbytes int8", {"weight_format": lambda old: old + 1}, r"must be 0 \(rows\)"),
        ("bitsandbytes nf4", {"absmax": lambda old: old[:-1]}, "absmax is"),
        ("bitsandbytes nf4", {"quant_map": lambda old: old[:8]}, r"quant_map is \[8\], it must be \[16\]"),
        ("bitsandbytes nf4", {"bitsandbytes__nf4": lambda old: old[:-2]}, "must be a JSON object, it is not"),
        ("bitsandbytes nf4", {"quant_map": None}, "quant_map is missing"),
    ],
)
def test_damaged_tensors_are_refused(label: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = written(tmp_path, label)
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        pyllm.load(folder, device="reference")


def test_a_matrix_of_another_size_is_refused_like_any_tensor(tmp_path: Path) -> None:
    folder = written(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 88}))
    assert "gate_proj.weight is [80, 48], it must be [88, 48]" in refused(folder)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quant_method": "quanto"}, UnsupportedModelError, "quantised by 'quanto' (supported: gptq, awq, compressed"),
        ({"bits": 3}, UnsupportedModelError, "GPTQ of 3 bits"),
        ({"bits": "4"}, InvalidConfigError, "bits must be a whole number, got '4'"),
        ({"group_size": 0}, InvalidConfigError, "group_size must be a number > 0, or -1, got 0"),
        ({"checkpoint_format": "marlin"}, UnsupportedModelError, "GPTQ checkpoints of format 'marlin'"),
        ({"dynamic": {"+:.*": {"bits": 8}}}, UnsupportedModelError, "other settings for some modules"),
        ({"modules_to_not_convert": "lm_head"}, InvalidConfigError, "modules_to_not_convert must be a list of names"),
        ({"quant_method": "awq", "version": "marlin"}, UnsupportedModelError, "AWQ checkpoints of version 'marlin'"),
        ({"quant_method": "awq", "zero_point": False}, UnsupportedModelError, "AWQ without zero points"),
        ({"quant_method": "bitsandbytes"}, InvalidConfigError, "one of load_in_8bit and load_in_4bit"),
        (compressed_config("float-quantized", 8, -1, True), UnsupportedModelError, "of format 'float-quantized'"),
        (compressed_config("naive-quantized", 8, -1, True), UnsupportedModelError, "of format 'naive-quantized'"),
        ({"quant_method": "compressed-tensors"}, InvalidConfigError, "config_groups must be an object of objects"),
        (compressed_config("pack-quantized", 2, 32, True), UnsupportedModelError, "'int' and 2 bits"),
    ],
)
def test_other_schemes_are_named(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path)
    set_config(folder, **settings)
    assert message in refused(folder, error)


def test_strange_values_give_typed_errors(tmp_path: Path) -> None:
    for label in ("gptq", "awq gemm", "pack-quantized", "bitsandbytes nf4"):
        folder = written(tmp_path / label, label)
        config = json.loads((folder / "config.json").read_text())
        quantization = config["quantization_config"]
        for key in [*quantization, "dynamic", "ignore", "sparsity_config"]:
            for value in (None, True, -1, 0, 10**30, 0.5, "", "x" * 100_000, [], [1], {}, {"a": 1}, {"group_0": {}}):
                (folder / "config.json").write_text(
                    json.dumps(config | {"quantization_config": quantization | {key: value}})
                )
                with open_checkpoint(folder) as checkpoint, contextlib.suppress(PyllmError):
                    quantized_view(checkpoint)


def test_autogptq_folders_describe_themselves_in_a_file_beside(tmp_path: Path) -> None:
    layout, _, _ = LAYOUTS["gptq"]
    plain, folder = write_quantized(toy_folder("llama"), tmp_path, layout, None)
    assert "qweight" in refused(folder)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    np.testing.assert_allclose(reference_logits(folder, [7, 8]), reference_logits(plain, [7, 8]), rtol=1e-5, atol=1e-5)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 5}))
    assert refused(folder, UnsupportedModelError).startswith("[quantize_config.json] a model must do without")


def test_biases_of_zeros_that_the_model_lacks_are_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path)
    content = load_file(folder / "model.safetensors")
    name = next(name for name in content if name.endswith("o_proj.qweight"))
    bias = name.removesuffix("qweight") + "bias"
    save_file(content | {bias: np.zeros(48, np.float16)}, folder / "model.safetensors")
    with pyllm.load(folder, device="reference"):
        pass
    save_file(content | {bias: np.ones(48, np.float16)}, folder / "model.safetensors")
    assert f"{bias} [48] is not part of the model" in refused(folder)


def test_modules_that_are_left_out_are_read_as_they_are(tmp_path: Path) -> None:
    """Some layers quantised, some not: what is stored counts."""
    layout, config, _ = LAYOUTS["gptq"]
    chosen = matrices_of(toy_folder("llama"))

    def some(name: str, w: np.ndarray) -> Any:
        return layout(name, w) if "layers.0" in name else ({f"{name}.weight": w}, w)

    assert any("layers.1" in name for name in chosen)
    settings = config | {"modules_to_not_convert": ["model.layers.1"]}
    plain, folder = write_quantized(toy_folder("llama"), tmp_path, some, settings)
    np.testing.assert_allclose(reference_logits(folder, [7, 8]), reference_logits(plain, [7, 8]), rtol=1e-5, atol=1e-5)


def test_a_weight_stored_in_both_ways_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    content = load_file(folder / "model.safetensors")
    name = next(name for name in content if name.endswith("o_proj.qweight"))
    content[name.removesuffix("qweight") + "weight"] = np.zeros((48, 48), np.float16)
    save_file(content, folder / "model.safetensors")
    assert "is stored both as it is and quantised" in refused(folder)


RECORDED = FIXTURES / "quantized"


def recorded(label: str) -> dict[str, np.ndarray]:
    with np.load(RECORDED / "tensors.npz") as arrays:
        prefix = label + "/"
        return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


@pytest.mark.parametrize("case", json.loads((RECORDED / "cases.json").read_text()), ids=lambda case: case["label"])
def test_what_the_quantisers_themselves_wrote(case: dict[str, Any], tmp_path: Path) -> None:
    """One matrix in the layout that each library gave it, and the weights that it reads back from that."""
    content = recorded(case["label"])
    wanted = content.pop("weights")
    save_file(content, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": case["config"]}))
    with open_checkpoint(tmp_path) as checkpoint:
        view = quantized_view(checkpoint)
        assert isinstance(view, QuantizedCheckpoint)
        assert view.names() == ["m.weight"]
        np.testing.assert_allclose(view.tensor("m.weight")[::5], wanted, rtol=1e-6, atol=1e-7)


def test_strange_states_of_bitsandbytes_give_typed_errors(tmp_path: Path) -> None:
    content = recorded("bitsandbytes nf4 nested")
    del content["weights"]
    name = "m.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(content[name].tobytes())
    config = {"quantization_config": BNB | {"load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for key in state:
        for value in (None, True, -1, 0, 2**31 - 1, 10**400, float("nan"), "x", [], [1, 2**31 - 1], [64, -1], {}):
            text = json.dumps(state | {key: value}).encode()
            save_file(content | {name: np.frombuffer(text, np.uint8)}, tmp_path / "model.safetensors")
            with open_checkpoint(tmp_path) as checkpoint, contextlib.suppress(CheckpointError):
                quantized_view(checkpoint).tensor("m.weight")
