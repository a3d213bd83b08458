"""CpuRunner as a device: memory, and what it refuses without harm. Its numbers are tested in test_models.py."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from safetensors.numpy import save_file
from stepping import Stepper

from pyllm import errors
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.cpu import CpuRunner
from pyllm.models import bind, build_program
from pyllm.program.batch import Batch

pytestmark = pytest.mark.cpu_only("CpuRunner; CudaRunner's are in test_cuda_runner.py")


@pytest.fixture(scope="module")
def runner() -> CpuRunner:
    return make_runner("float32")


def make_runner(dtype: str, **options: Any) -> CpuRunner:
    checkpoint = open_checkpoint(toy_folder("gpt2"))
    program = build_program(checkpoint.config)
    return CpuRunner(program, bind(program, checkpoint), dtype=dtype, **options)


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def batch_of(runner: CpuRunner, cache: Any) -> Batch:
    return Batch(
        ids=int32(4, 5, 6),
        positions=int32(0, 1, 2),
        starts=int32(0, 3),
        context=int32(3),
        block_table=np.array([[cache.allocate()]], np.int32),
        logit_rows=int32(0, 2),
    )


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "id": ({"ids": int32(4, 131, 6)}, errors.PromptError, r"\[0, 131\), got 131 in row 1"),
    "context": ({"positions": int32(95, 96, 97), "context": int32(98)}, errors.ContextLengthError, "96 tokens, got 98"),
    "dtype": ({"ids": np.array([4, 5, 6])}, errors.ArrayError, r"batch.ids\] must be int32 .* got int64"),
    "shape": ({"positions": int32(0, 1)}, errors.ArrayError, r"batch.positions\] must be int32 \[3\]"),
    "strides": ({"ids": int32(4, 0, 5, 0, 6, 0)[::2]}, errors.ArrayError, "C-contiguous"),
    "starts": ({"starts": int32(0, 2)}, errors.ArrayError, "starts must"),
    "block": ({"block_table": np.array([[7]], np.int32)}, errors.ArrayError, "block 7"),
    "table": ({"block_table": np.zeros((1, 0), np.int32)}, errors.ArrayError, "0 blocks for 3 tokens"),
    "rows": ({"logit_rows": int32(3)}, errors.ArrayError, "logit_rows must"),
    "empty": (
        {name: int32() for name in ("ids", "positions", "context")}
        | {"starts": int32(0), "block_table": np.zeros((0, 1), np.int32)},
        errors.ArrayError,
        "at least one row",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_batches(runner: CpuRunner, case: str) -> None:
    changes, error, message = WRONG[case]
    cache = runner.new_cache()
    batch = batch_of(runner, cache)
    with pytest.raises(error, match=message):
        runner.run(dataclasses.replace(batch, **changes), cache)
    assert runner.run(batch, cache).shape == (2, 131)


def test_a_foreign_cache_is_refused(runner: CpuRunner) -> None:
    batch = batch_of(runner, runner.new_cache())
    with pytest.raises(errors.ArrayError, match="another model"):
        runner.run(batch, make_runner("bfloat16").new_cache())
    with pytest.raises(errors.ArrayError, match="new_cache"):
        runner.run(batch, object())  # type: ignore[arg-type]


def test_logits_that_are_held_stay_valid(runner: CpuRunner) -> None:
    """A view outlives its cache, and a larger step that replaces the buffer."""
    stepper = Stepper(runner)
    cache = stepper.cache
    batch = batch_of(runner, cache)
    first = runner.run(batch, cache)
    copy = first.copy()
    stepper.step({str(i): [3] * 90 for i in range(60)})
    del stepper, cache
    np.testing.assert_array_equal(first, copy)


def test_no_logits_wanted(runner: CpuRunner) -> None:
    cache = runner.new_cache()
    batch = dataclasses.replace(batch_of(runner, cache), logit_rows=int32())
    assert runner.run(batch, cache).shape == (0, 131)


def test_a_limited_cache_refuses_more_and_stays_usable(runner: CpuRunner) -> None:
    block_bytes = runner.new_cache().block_bytes
    cache = runner.new_cache(max_bytes=3 * block_bytes + 1)
    blocks = [cache.allocate() for _ in range(3)]
    with pytest.raises(errors.OutOfMemoryError, match=f"all 3 blocks of {block_bytes} bytes"):
        cache.allocate()
    assert issubclass(errors.OutOfMemoryError, MemoryError)
    cache.release(blocks.pop())
    assert cache.blocks_in_use == 2
    assert cache.references(cache.allocate()) == 1
    with pytest.raises(errors.ArrayError, match="block 99"):
        cache.release(99)


def test_options_are_checked() -> None:
    with pytest.raises(errors.InvalidOptionError, match="float8"):
        make_runner("float8")
    with pytest.raises(errors.InvalidOptionError, match="num_threads"):
        make_runner("float32", num_threads=0)
    with pytest.raises(errors.DeviceError, match="sse9"):
        make_runner("float32", isa="sse9")


def test_memory_report(runner: CpuRunner) -> None:
    cache = runner.new_cache()
    cache.allocate()
    report = runner.memory_report()
    parameters = sum(int(np.prod(matrix.shape)) for matrix in runner.program.matrices())
    assert 4 * parameters <= report["weights"] < 4 * parameters + (2 << 20) + 200_000  # padding, and a huge page
    assert report["key_value_cache"] >= cache.bytes > 0
    assert report["activations"] > 0
    assert report["of_it_on_huge_pages"] >= 0


LOAD = """
import re, sys
from pathlib import Path
import pyllm, pyllm.checkpoint.torch_zip, pyllm.devices.cpu

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

load, before = pyllm.load, peak()
model = load(sys.argv[1], dtype=sys.argv[2])
print(peak() - before, model.memory_report()["weights"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see the peak")
@pytest.mark.parametrize(
    ("file", "stored", "dtype"),
    [
        ("model.safetensors", "float32", "float32"),
        ("model.safetensors", "float32", "bfloat16"),
        ("model.safetensors", "bfloat16", "float32"),
        ("model.safetensors", "bfloat16", "bfloat16"),
        ("pytorch_model.bin", "float32", "float32"),
        ("pytorch_model.bin", "bfloat16", "bfloat16"),
    ],
)
def test_loading_takes_little_more_than_the_packed_weights(tmp_path: Path, file: str, stored: str, dtype: str) -> None:
    folder = tmp_path / "model"
    elements, largest = write_checkpoint(folder, file, stored)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), dtype], capture_output=True, text=True, timeout=120, check=True
    )
    peak, packed = map(int, done.stdout.split())
    assert packed < 1.05 * elements * (2 if dtype == "bfloat16" else 4)  # a tied head once
    assert peak <= packed + largest + 30_000_000, f"{peak / 1e6:.0f} MB for {packed / 1e6:.0f} MB of packed weights"


def write_checkpoint(folder: Path, file: str, stored: str) -> tuple[int, int]:
    """A GPT-2 of 140 MB in float32, mostly zeros; returns its elements and the bytes of its largest tensor."""
    width, layers, vocabulary, context = 768, 4, 6000, 256
    shapes = {"wte": (vocabulary, width), "wpe": (context, width)}
    norms = ["ln_f"]
    for i in range(layers):
        shapes |= {
            f"h.{i}.attn.c_attn": (width, 3 * width),
            f"h.{i}.attn.c_proj": (width, width),
            f"h.{i}.mlp.c_fc": (width, 4 * width),
            f"h.{i}.mlp.c_proj": (4 * width, width),
        }
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
    tensors = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[1], np.float32) for name, shape in shapes.items() if ".c_" in name}
    tensors |= {f"{name}.{kind}": np.ones(width, np.float32) for name in norms for kind in ("weight", "bias")}
    folder.mkdir()
    write_tensors(folder / file, tensors, stored)
    config = {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": context,
        "n_embd": width,
        "n_layer": layers,
    }
    (folder / "config.json").write_text(json.dumps({**config, "n_head": 12}))
    sizes = [tensor.size for tensor in tensors.values()]
    return sum(sizes), max(sizes) * (2 if stored == "bfloat16" else 4)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], stored: str) -> None:
    if path.suffix == ".safetensors" and stored == "float32":
        save_file(tensors, path)
        return
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(tensor).to(getattr(torch, stored)) for name, tensor in tensors.items()}
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
