"""Quantised weights and caches in whole models: what is computed is what the dequantised weights give in float64."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_device
from conftest import toy_folder
from numpy.typing import NDArray
from quantized_layouts import gptq, of_grid, pack_quantized, write_quantized
from stepping import greedy, logits_of
from stepping_seq2seq import outputs_of
from test_quantized_checkpoints import GPTQ, LAYOUTS, multiple_of

import pyllm
from pyllm import _C
from pyllm.checkpoint import open_checkpoint
from pyllm.checkpoint.codes import Codes, Kind, floats_of
from pyllm.devices import formats
from pyllm.devices.cpu import CpuRunner
from pyllm.devices.formats import QUANTIZATIONS, Chosen, choose, choose_all, quantizable, weight_bytes
from pyllm.devices.reference import ReferenceRunner
from pyllm.engine.encoder_model import EncoderModel
from pyllm.models import BoundCheckpoint, bind, network_of
from pyllm.program.batch import Runner
from pyllm.program.network import Network

# Activations are 16-bit integers: a rounding is half a step of amax / 32639, and amax about three times the root of the
# mean square, so 3e-5 of a row; a dozen matmuls in a row, none of them shrinking it, stay far below 1e-3. With 8 bits
# it is 257 times as much.
TOLERANCE = {"int8": 1e-3, "int4": 1e-3, "int4-g128": 1e-3, "int8-fast": 0.15}
# A decoder with tables stored [k, n], grouped heads, biases; experts; encoder-decoders; encoders, one with heads of
# matrices.
DECODERS = ("gpt2", "llama", "qwen2", "phi3", "gemma2", "qwen2_moe", "mixtral")
SEQ2SEQ = ("bart", "t5")
ENCODERS = ("bert", "modernbert", "deberta-v2", "bert-classify")
EMBEDDINGS = ("word", "position", "token_type")
IDS = [5, 17, 80, 3, 99, 41, 7, 120, 64, 33, 2, 90]


class Dequantized:
    """A checkpoint's tensors, those that are quantised while packing as their codes and scales say."""

    def __init__(self, network: Network, bound: BoundCheckpoint, quantization: str) -> None:
        self._bound, self._dtype = bound, "int8" if quantization == "int8-fast" else quantization
        chosen = choose_all(network, "float32", quantization, bound.kind)
        self._turned = {
            source.name: source.transposed
            for matrix, each in chosen.items()
            if each.format == quantization and not each.codes
            for source in matrix.sources
        }

    def tensor(self, name: str) -> NDArray[Any]:
        if name not in self._turned:
            return self._bound.tensor(name)
        stored = floats_of(self._bound.tensor(name))
        found = quantized(stored.T if self._turned[name] else stored, self._dtype).dequantized()
        return found.T if self._turned[name] else found

    def dtype(self, name: str) -> str:
        return "F32" if name in self._turned else self._bound.dtype(name)


def quantized(weights: NDArray[Any], dtype: str) -> Codes:
    codes, scales = _C.quantize(np.ascontiguousarray(weights), dtype)
    group = {"int8": weights.shape[1], "int4": 32, "int4-g128": 128}[dtype]
    return Codes(8 if dtype == "int8" else 4, codes, scales, None, group)


def outputs(network: Network, runner: Runner) -> NDArray[np.float32]:
    """What a network's main program gives for some ids."""
    if network.kind == "decoder":
        return logits_of(runner, IDS)
    if network.kind == "encoder-decoder":
        return outputs_of(runner, IDS, IDS[:5])
    nowhere: dict[str, Any] = {"folder": Path(), "config": {}, "generation_config": {}, "tokenizer": lambda: None}
    model = EncoderModel(network, runner, **nowhere, dtype="", device="")
    return model.forward([IDS])[0].reshape(1, -1)


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ, *ENCODERS])
def test_outputs_are_those_of_the_dequantised_weights(name: str, quantization: str) -> None:
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        expected = outputs(network, ReferenceRunner(network, Dequantized(network, bound, quantization)))
        runner = CpuRunner(network, bound, dtype="float32", quantization=quantization)
        assert relative(outputs(network, runner), expected) <= TOLERANCE[quantization]
        if quantization != "int8-fast":  # and the rounding of the weights shows: they are not packed as floats
            plain = outputs(network, ReferenceRunner(network, bound))
            assert relative(plain, expected) > 3 * TOLERANCE[quantization]


@pytest.mark.parametrize("kv_cache", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_keys_and_values_in_every_format(name: str, kv_cache: str) -> None:
    """Against float32. A key or value is rounded by 2^-9 (bfloat16), 2^-12 (float16), or to 1/127 of its largest."""
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        expected = outputs(network, CpuRunner(network, bound, dtype="float32"))
        runner = CpuRunner(network, bound, dtype="float32", kv_cache=kv_cache)
        assert runner.kv_cache == kv_cache
        error = relative(outputs(network, runner), expected)
        assert error <= {"float32": 0, "bfloat16": 2e-2, "float16": 3e-3, "int8": 4e-2}[kv_cache]
        assert (error > 0) == (kv_cache != "float32")


@pytest.mark.parametrize("name", ["gpt2", "qwen2_moe", "t5", "bert"])
def test_float16(name: str) -> None:
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        runner = CpuRunner(network, bound, dtype="float16")
        assert runner.kv_cache == "float16"
        found, expected = outputs(network, runner), outputs(network, ReferenceRunner(network, bound))
        rows = sorted(relative(*each) for each in zip(found, expected, strict=True))
        # Weights are rounded by 2^-12. A row whose router finds two experts nearly equal may take the other one.
        assert rows[-1 if name != "qwen2_moe" else -2] <= 3e-3


PACKED = {  # what the layouts of test_quantized_checkpoints are packed as
    "gptq": "int4",
    "gptq asymmetric": "int4z",
    "gptq v2": "int4z",
    "gptq whole": "int4-g128",
    "gptq desc_act": "int8",
    "gptq 8 bit": "int8",
    "gptq 8 bit whole": "int8",
    "awq gemm": "int4z",
    "awq gemv": "int8",  # groups of 16
    "pack-quantized": "int4",
    "pack-quantized asymmetric": "int4z",
    "pack-quantized channel": "int4-g128",
    "pack-quantized ordered": "int8",
    "pack-quantized 8 bit": "int8",
    "int-quantized": "int8",
    "int-quantized asymmetric": "int8",
    "bitsandbytes int8": "int8",
    "bitsandbytes nf4": "int8",
}


@pytest.mark.parametrize("label", LAYOUTS)
def test_quantised_checkpoints_are_packed_as_they_are(label: str, tmp_path: Path) -> None:
    layout, config, (bits, _) = LAYOUTS[label]
    exact = bits > 0 and label != "awq gemv"
    name = "llama" if label == "awq gemm" else "gpt2"
    _, folder = write_quantized(toy_folder(name), tmp_path, layout, config, multiple=multiple_of(label))
    with pyllm.load(folder, device="reference") as model:
        expected = model.logits(IDS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = pyllm.load(folder, dtype="float32")
    with model:
        assert model.quantization == PACKED[label]
        assert [bool(re.search(r"which no packed format holds.* as int8", str(each.message))) for each in caught] == [
            True
        ] * (not exact)
        assert relative(model.logits(IDS), expected) <= (TOLERANCE["int4"] if exact else 0.03)


@pytest.mark.parametrize("name", ["phi3", "qwen2_moe"])
def test_fused_matrices_and_experts_of_quantised_checkpoints(name: str, tmp_path: Path) -> None:
    from test_quantized_checkpoints import unstacked_copy

    layout, config, _ = LAYOUTS["gptq asymmetric"]
    source = unstacked_copy(toy_folder(name), tmp_path / "source")
    _, folder = write_quantized(source, tmp_path, layout, config, multiple=8)
    with pyllm.load(folder, device="reference") as model:
        expected = model.logits(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that the multiple of 8 left in part as they were
        model = pyllm.load(folder, dtype="float32")
    with model:
        assert relative(model.logits(IDS), expected) <= TOLERANCE["int4"]


@pytest.mark.parametrize("quantization", [None, "int4", "int4-g128", "int8"])
def test_an_asked_for_format_uses_the_codes_that_it_holds(quantization: str | None, tmp_path: Path) -> None:
    """The head, which the checkpoint has as floats, is quantised besides."""
    layout, config, _ = LAYOUTS["gptq whole"]
    _, folder = write_quantized(toy_folder("llama"), tmp_path, layout, config)
    with open_checkpoint(folder) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        tensors = bound if quantization is None else Dequantized(network, bound, quantization)
        expected = outputs(network, ReferenceRunner(network, tensors))
        runner = CpuRunner(network, bound, dtype="float32", quantization=quantization)
    assert runner.quantization == (quantization or "int4-g128")
    assert relative(outputs(network, runner), expected) <= TOLERANCE["int4"]
    chosen = choose_all(network, "float32", quantization, bound.kind)
    assert sum(each.codes for each in chosen.values()) == (0 if quantization == "int8" else 8)


FOUR, EIGHT, NONE = Kind("4", 4, 64), Kind("8", 8, 640, whole=True), Kind("nf4")


@pytest.mark.parametrize(
    ("quantization", "kinds", "expected"),
    [
        (None, [None, None], Chosen("bfloat16")),
        ("int4", [None], Chosen("int4")),
        (None, [FOUR, FOUR], Chosen("int4", codes=True)),
        (None, [Kind("4", 4, 256)], Chosen("int4-g128", codes=True)),
        (None, [Kind("4", 4, 256), FOUR], Chosen("int4", codes=True)),
        (None, [Kind("4", 4, 100, whole=True), Kind("4", 4, 128, zeros=True)], Chosen("int4z-g128", codes=True)),
        ("int4", [Kind("4", 4, 128, zeros=True)], Chosen("int4z", codes=True)),
        ("int4-g128", [FOUR], Chosen("int4-g128")),
        ("int8", [FOUR], Chosen("int8")),
        ("int8-fast", [EIGHT], Chosen("int8-fast", codes=True)),
        ("int4", [EIGHT], Chosen("int4")),
        (None, [EIGHT, EIGHT], Chosen("int8", codes=True)),
        (None, [EIGHT, FOUR], Chosen("int8", inexact="4 and 8")),
        (None, [NONE], Chosen("int8", inexact="nf4")),
        ("int4", [NONE, None], Chosen("int4", inexact="nf4")),
        (None, [FOUR, None], Chosen("bfloat16", inexact="4")),
        (None, [Kind("4", 4, 48)], Chosen("int8", inexact="4")),
    ],
)
def test_choice_of_format(quantization: str | None, kinds: Sequence[Kind | None], expected: Chosen) -> None:
    assert choose("bfloat16", quantization, kinds) == expected


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("gpt2", {"wpe.weight"}),
        ("qwen2_moe", {"layers.1.mlp.gate"}),
        ("bert-classify", {"classifier", *(f"embeddings.{table}_embeddings.weight" for table in EMBEDDINGS)}),
    ],
)
def test_what_is_quantised(name: str, kept: set[str]) -> None:
    """All that is multiplied by, a tied head too; not tables, routers, matrices of few outputs."""
    with open_checkpoint(toy_folder(name)) as checkpoint:
        network = network_of(checkpoint)
    names = {matrix.name for program in network.programs.values() for matrix in program.matrices()}
    assert names - {matrix.name for matrix in quantizable(network)} == kept


def test_routers_of_many_experts_and_matrices_a_head_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FEWEST_OUTPUTS", 1)
    for name, kept in (("qwen2_moe", "layers.1.mlp.gate"), ("deberta-v2", "key_proj.distances")):
        with open_checkpoint(toy_folder(name)) as checkpoint:
            network = network_of(checkpoint)
        assert not any(kept in matrix.name for matrix in quantizable(network))


def test_a_quantised_model_generates() -> None:
    text = "The prince went to the castle, and the king was glad to see him."
    greedy_options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    with pyllm.load(pyllm.default_model(), quantization="int8", kv_cache="int8") as model:
        assert (model.dtype, model.quantization, model.kv_cache) == ("bfloat16", "int8", "int8")
        assert f"int8 and bfloat16 on {tested_device.NAME}" in repr(model)
        first = model.generate("The prince", **greedy_options)
        assert len(model.generate("The prince", num_beams=4, num_return_sequences=4, **greedy_options).sequences) == 4
        assert "".join(model.stream("The prince", **greedy_options)) == first.text
        quantized_bytes, perplexity = model.memory_report()["weights"], model.score(text).perplexity
    with pyllm.load(pyllm.default_model(), dtype="float32") as model:
        assert (model.quantization, model.kv_cache) == (None, "float32")
        assert quantized_bytes < 0.5 * model.memory_report()["weights"]
        assert abs(perplexity / model.score(text).perplexity - 1) < 0.02


def test_weights_take_the_room_of_their_format() -> None:
    with open_checkpoint(toy_folder("llama")) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        for quantization in QUANTIZATIONS:
            held = CpuRunner(network, bound, dtype="bfloat16", quantization=quantization).memory_report()["weights"]
            chosen = choose_all(network, "bfloat16", quantization, None)
            assert sum(weight_bytes(matrix, each.format) for matrix, each in chosen.items()) <= held
    matrix = next(matrix for matrix in quantizable(network) if matrix.shape == (160, 48))
    sizes = {name: weight_bytes(matrix, name) for name in ("float32", "bfloat16", "int8", "int4", "int4z-g128")}
    assert sizes == {
        "float32": 160 * 48 * 4,
        "bfloat16": 160 * 48 * 2,
        "int8": 160 * (48 + 4),
        "int4": 160 * (24 + 2 * 2),
        "int4z-g128": 160 * (24 + 3),
    }


LOAD = """
import re, sys
from pathlib import Path
import pyllm, pyllm.checkpoint.quantized, pyllm.devices.cpu

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

load, before = pyllm.load, peak()
model = load(sys.argv[1], quantization=sys.argv[2] or None)
print(peak() - before, model.memory_report()["weights"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see the peak")
@pytest.mark.parametrize("stored", ["float", "gptq", "pack-quantized"])
def test_loading_takes_little_more_than_the_packed_weights(tmp_path: Path, stored: str) -> None:
    from test_runner import write_checkpoint

    folder = tmp_path / "model"
    elements, largest = write_checkpoint(folder, "model.safetensors", "float32")
    if stored != "float":
        layout = of_grid(gptq, 4, 128) if stored == "gptq" else of_grid(pack_quantized, 4, 128)
        config = GPTQ | {"group_size": 128} if stored == "gptq" else LAYOUTS["pack-quantized"][1]
        if stored != "gptq":
            config["config_groups"]["group_0"]["weights"]["group_size"] = 128
        folder = write_quantized(folder, tmp_path, layout, config)[1]
    asked = "int4" if stored == "float" else ""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), asked], capture_output=True, text=True, timeout=120, check=True
    )
    peak, packed = map(int, done.stdout.split())
    assert packed < elements * 1.3  # a tied head in 4 bits, or in 16 where it was left as it is
    assert peak <= packed + largest + 60_000_000, f"{peak / 1e6:.0f} MB for {packed / 1e6:.0f} MB of packed weights"


def test_greedy_text_of_chunks(tmp_path: Path) -> None:
    """A quantised model's text is the same however its prompt comes, here by hand and by the engine."""
    with open_checkpoint(toy_folder("llama")) as checkpoint:
        network = network_of(checkpoint)
        runner = CpuRunner(network, bind(network, checkpoint), dtype="bfloat16", quantization="int4", kv_cache="int8")
    with pyllm.load(toy_folder("llama"), dtype="bfloat16", quantization="int4", kv_cache="int8") as model:
        model.generation_config = {}
        assert model.generate(IDS, max_new_tokens=10).token_ids == greedy(runner, IDS, 10)


@pytest.mark.cpu_only("AMX")
def test_bf16x3_is_float32_for_tables_and_keys_and_close_to_it_in_matmuls() -> None:
    folder = toy_folder("llama")
    ids = [5, 9, 2, 77, 31]
    with pyllm.load(folder, dtype="float32-bf16x3") as split, pyllm.load(folder, dtype="float32") as plain:
        assert split.dtype == "float32-bf16x3"
        assert split.runner.kv_cache == "float32"
        assert set(split.runner.formats) == {"float32", "float32-bf16x3"}
        difference = np.abs(split.logits(ids) - plain.logits(ids)).max()
        assert difference <= 1e-4 * np.abs(plain.logits(ids)).max()
        if split.runner.isa != "amx":
            assert difference == 0
