"""Packed weights of a GPU on disk: the bits of packing, damage, room, and that no device takes another's."""

from __future__ import annotations

import threading
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from cuda_arrays import Device
from cuda_runners import chosen_device  # noqa: F401

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.devices import cuda_packing, cuda_store, packed_cache
from pyllm.devices.cuda import CudaRunner
from pyllm.devices.cuda_memory import DeviceMemory
from pyllm.devices.cuda_packing import DeviceWeights
from pyllm.devices.lowering import Lowering
from pyllm.devices.packing import load_weights
from pyllm.models import bind, build_network, network_of
from pyllm.program.network import Network

PROMPT = [5, 17, 80, 3, 9]
KEY = "k" * 64


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is slow to pack, and spans are so short that arrays reach over several and share them."""
    monkeypatch.setenv("PYLLM_PACKED_CACHE_DIR", str(tmp_path / "packed"))
    monkeypatch.delenv("PYLLM_PACKED_CACHE", raising=False)
    monkeypatch.setattr(packed_cache, "SLOW", -1.0)
    monkeypatch.setattr(cuda_store, "SPAN", 10_000)
    return tmp_path / "packed"


def lowered(name: str, quantization: str | None) -> tuple[Lowering, Any]:
    checkpoint = open_checkpoint(toy_folder(name))
    network = network_of(checkpoint)
    return Lowering(network, "bfloat16", quantization), bind(network, checkpoint)


def stored(device: Device, name: str, quantization: str | None, pack: bool = True) -> cuda_store.StoredWeights:
    memory = DeviceMemory(device.module, device.xp, 0)
    of, tensors = lowered(name, quantization)
    weights: DeviceWeights[Any] = DeviceWeights(of, lambda array: memory.upload("weights", array))
    if pack:
        load_weights(weights, of, tensors, progress=False)
    return cuda_store.StoredWeights(weights, memory)


def content(device: Device, of: cuda_store.StoredWeights) -> list[bytes]:
    return [device.to_host(array).tobytes() for array in of._weights.arrays]


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("llama", "int4"), ("llama", "int8"), ("gpt2", "int4-g128"), ("qwen2_moe", "int8-fast"), ("t5", "int8")],
)
def test_restored_weights_have_the_same_bits(device: Device, name: str, quantization: str) -> None:
    packed, fresh = stored(device, name, quantization), stored(device, name, quantization, pack=False)
    path = packed_cache.keep(packed, KEY)
    assert path is not None
    assert path.stat().st_size == packed_cache.DATA + packed.nbytes
    assert packed_cache.restore(fresh, KEY)
    assert content(device, fresh) == content(device, packed)
    assert list(fresh._weights.matrices) == list(packed._weights.matrices)
    assert list(fresh._weights.vectors) == list(packed._weights.vectors)


@pytest.mark.parametrize(("name", "quantization"), [("gpt2", None), ("llama", "int4"), ("t5", "int8")])
def test_what_is_packed_is_what_the_layouts_say(name: str, quantization: str | None) -> None:
    of, tensors = lowered(name, quantization)
    arrays: list[Any] = []
    weights: DeviceWeights[Any] = DeviceWeights(of, lambda array: arrays.append(array) or array)
    load_weights(weights, of, tensors, progress=False)
    layouts = [layout for one in weights.layouts.values() for layout in one.arrays]
    layouts += weights.vector_layouts.values()
    assert [(array.shape, array.dtype) for array in arrays] == [(each.shape, each.dtype) for each in layouts]
    assert [array.nbytes for array in arrays] == [each.nbytes for each in layouts]
    for index, one in weights.matrices.items():
        known = weights.layouts[index]
        assert (one.format, one.n, one.k, one.ld, one.gated) == (known.format, known.n, known.k, known.ld, known.gated)


def test_a_model_is_packed_once(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**options: Any) -> Any:
        return pyllm.load(toy_folder("llama"), device="cuda", dtype="float32", quantization="int4", **options)

    def text(model: Any) -> Any:
        return model.generate([PROMPT], max_new_tokens=6, output_logits=True)[0]

    def refuse(*_: Any) -> None:
        raise AssertionError("packed again")

    expected = text(load())
    assert len(list(cache_folder.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("pyllm.devices.cuda.load_weights", refuse)
        assert repr(text(load())) == repr(expected)
    with monkeypatch.context() as patch:  # what an older layout left is not touched
        patch.setattr(cuda_store, "LAYOUT", cuda_store.LAYOUT + 1)
        assert repr(text(load())) == repr(expected)
    assert len(list(cache_folder.iterdir())) == 2
    pyllm.load(toy_folder("llama"), device="cpu", dtype="float32", quantization="int4")
    assert len(list(cache_folder.iterdir())) == 3, "a processor's layouts are others"
    pyllm.load(toy_folder("llama"), device="cuda", dtype="float32")
    assert len(list(cache_folder.iterdir())) == 3, "floats are packed as fast as they are read"


def test_what_is_packed_fast_is_not_kept(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_cache, "SLOW", 1e6)
    pyllm.load(toy_folder("llama"), device="cuda", quantization="int8")
    assert not cache_folder.exists()


@pytest.mark.parametrize("damage", ["first", "last", "short", "long", "header", "cpu"])
def test_damage_is_seen_and_the_model_packed_again(damage: str, cache_folder: Path) -> None:
    def load() -> Any:
        return pyllm.load(toy_folder("llama"), device="cuda", quantization="int8")

    expected = load().generate([PROMPT], max_new_tokens=4)[0].token_ids
    (path,) = cache_folder.iterdir()
    whole = path.read_bytes()
    changed = bytearray(whole)
    if damage in ("first", "last"):
        changed[packed_cache.DATA if damage == "first" else -1] ^= 1
    elif damage == "short":
        del changed[-1:]
    elif damage == "long":
        changed += b"\0"
    elif damage == "header":
        changed[12] ^= 0xFF
    else:
        pyllm.load(toy_folder("llama"), device="cpu", dtype="bfloat16", quantization="int8")
        (other,) = set(cache_folder.iterdir()) - {path}
        changed = bytearray(other.read_bytes())
    path.write_bytes(changed)
    assert load().generate([PROMPT], max_new_tokens=4)[0].token_ids == expected
    assert path.read_bytes() == whole, "it was removed and written anew"


def test_a_file_that_changes_while_it_is_read_is_not_used(device: Device, tmp_path: Path) -> None:
    packed, fresh = stored(device, "llama", "int8"), stored(device, "llama", "int8", pack=False)
    path = tmp_path / "file"
    with path.open("wb") as file:
        checksum = packed.write(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not fresh.read(str(path), 0, checksum)
    assert not fresh._weights.arrays
    path.write_bytes(whole)
    assert fresh.read(str(path), 0, checksum)


def test_concurrent_writers_and_readers_see_whole_files(device: Device, cache_folder: Path) -> None:
    packed = stored(device, "llama", "int4")
    packed_cache.keep(packed, KEY)
    restored: list[bool] = []

    def write() -> None:
        for _ in range(4):
            assert packed_cache.keep(packed, KEY) is not None

    def read() -> None:
        restored.extend(packed_cache.restore(stored(device, "llama", "int4", pack=False), KEY) for _ in range(4))

    threads = [threading.Thread(target=each) for each in (write, read, write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert restored == [True] * 8
    assert [path.name for path in cache_folder.iterdir()] == [KEY + packed_cache.SUFFIX]


@pytest.mark.parametrize("reason", ["limit", "disk"])
def test_no_room_costs_only_time(
    reason: str, device: Device, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = stored(device, "llama", "int4")
    if reason == "limit":
        monkeypatch.setenv("PYLLM_PACKED_CACHE_GB", str(0.5 * packed.nbytes / 1e9))
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packed._memory, "fetch", full)
    assert packed_cache.keep(packed, KEY) is None
    assert not list(cache_folder.iterdir()), "nothing half written is left"


class Views:
    """Tensors that take no memory of their own."""

    def __init__(self, network: Network) -> None:
        self._shapes = {source.name: source.shape for source in network.main.sources()}
        values = np.random.default_rng(1).standard_normal(max(map(prod, self._shapes.values()))).astype(np.float32)
        self._bits = (values.view(np.uint32) >> 16).astype(np.uint16)

    def tensor(self, name: str) -> Any:
        return self._bits[: prod(self._shapes[name])].reshape(self._shapes[name])

    def release(self, name: str) -> None:
        pass


@pytest.mark.parametrize("quantization", [None, "int8", "int4", "int4-g128"])
def test_packing_takes_the_memory_of_one_matrix(quantization: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the checkpoint holds mapped: its codes, before and after they are in order."""
    monkeypatch.setattr(cuda_packing, "BLOCK", 1 << 13)  # what threads have under way is little
    config = {**open_checkpoint(toy_folder("llama")).config, "hidden_size": 512, "intermediate_size": 1024}
    config.update(num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, head_dim=64)
    network = build_network(config)
    of, tensors = Lowering(network, "bfloat16", quantization), Views(network)
    largest = 2 * max(prod(matrix.shape) for matrix in of.chosen)  # bytes, as stored
    weights: DeviceWeights[None] = DeviceWeights(of, lambda _: None)
    tracemalloc.start()
    try:
        load_weights(weights, of, tensors, progress=False)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * largest, (peak, largest)


def test_memory_is_that_of_one_runner(device: Device) -> None:
    """What was restored is counted as what was packed."""
    with open_checkpoint(toy_folder("llama")) as checkpoint:
        network = network_of(checkpoint)
        runners = [
            CudaRunner(
                network, bind(network, checkpoint), dtype="bfloat16", quantization="int8", folder=checkpoint.folder
            )
            for _ in range(2)
        ]
    assert len({runner.memory_report()["weights"] for runner in runners}) == 1
    assert np.array_equal(*[runner.formats for runner in runners])
