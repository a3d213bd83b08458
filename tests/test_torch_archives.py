"""pytorch_model.bin without torch: equality with torch.load, hostile pickles that must not run, damaged archives."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoint import check_equal as check_arrays
from test_checkpoint import write_folder

from pyllm.checkpoint import open_checkpoint
from pyllm.checkpoint.state_dict import StateDictError, read_state_dict
from pyllm.errors import CheckpointError

torch = pytest.importorskip("torch")

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.bf16": torch.linspace(-3, 3, 35).reshape(5, 7).bfloat16(),
    "c.f16": torch.linspace(-3, 3, 6).half(),
    "d.i64": torch.tensor([[1, -2], [3, 1 << 40]]),
    "e.empty": torch.zeros(0, 5),
    "f.scalar": torch.tensor(2.5, dtype=torch.float64),
    "g.u8": torch.arange(3, dtype=torch.uint8),
    "h.bool": torch.tensor([True, False, True]),
    "i.i32": torch.tensor([-(1 << 31)], dtype=torch.int32),
}


def as_numpy(tensor: Any) -> np.ndarray:
    """The array pyllm returns for a torch tensor: bfloat16 as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check_equal(folder: Path, expected: dict[str, Any]) -> None:
    check_arrays(folder, {name: as_numpy(tensor) for name, tensor in expected.items()})


def save(folder: Path, state: Any, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(state, write_folder(folder) / name, **options)
    return folder / name


def test_every_dtype_equals_torch_load(tmp_path: Path) -> None:
    state = OrderedDict(TENSORS)
    state["parameter"] = torch.nn.Parameter(torch.ones(3))
    state["untyped"] = torch.tensor([1, 65535], dtype=torch.uint16)
    state._metadata = torch.nn.Linear(2, 2).state_dict()._metadata  # type: ignore[attr-defined]
    path = save(tmp_path, state)
    check_equal(tmp_path, {name: t.detach() for name, t in torch.load(path, weights_only=True).items()})


def test_shared_and_strided_storages(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "base": base,
        "same": base,
        "offset": base[8:16],
        "matrix": base.reshape(4, 6),
        "transposed": base.reshape(4, 6).t(),
        "column": base.reshape(4, 6)[:, 1:3],
        "odd": base[1::2],
        "one": base.reshape(1, 24).t(),
        "empty": base[3:3],
    }
    save(tmp_path, state)
    check_equal(tmp_path, state)
    with open_checkpoint(tmp_path) as checkpoint:
        base_view, offset_view = checkpoint.tensor("base"), checkpoint.tensor("offset")
        assert np.shares_memory(base_view, offset_view)
        checkpoint.release("transposed")
        np.testing.assert_array_equal(checkpoint.tensor("transposed"), state["transposed"].numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    save(tmp_path, TENSORS, pickle_protocol=protocol)
    check_equal(tmp_path, TENSORS)


def test_large_archives_need_zip64(tmp_path: Path) -> None:
    """70 000 entries: more than a zip directory counts in 16 bits."""
    path = save(tmp_path, {"w": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(70_000):
            archive.writestr(f"pytorch_model/extra/{i}", b"")
    check_equal(tmp_path, {"w": torch.ones(2)})


def test_sharded_files(tmp_path: Path) -> None:
    weight_map = {}
    for i, name in enumerate(TENSORS):
        weight_map[name] = f"pytorch_model-{i:05}-of-{len(TENSORS):05}.bin"
        save(tmp_path, {name: TENSORS[name]}, weight_map[name])
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check_equal(tmp_path, TENSORS)
    (tmp_path / weight_map["c.f16"]).unlink()
    (tmp_path / weight_map["a.weight"]).unlink()
    with pytest.raises(CheckpointError, match=r"2 are missing in .*model-00000-.*, pytorch_model-00002"):
        open_checkpoint(tmp_path)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save(tmp_path, {"w": torch.zeros(1)})
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    check_equal(tmp_path, {"w": torch.ones(1)})


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again with changed entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


class Hostile:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Programs that would leave the file `mark` if anything of them ran, and others that must end in an error."""
    command = f"touch {mark}"
    return {
        "os.system": pickle.dumps({"w": Hostile(os.system, command)}, 2),
        "eval": pickle.dumps({"w": Hostile(eval, f"open({str(mark)!r}, 'w')")}, 2),
        "exec in protocol 4": pickle.dumps({"w": Hostile(exec, f"open({str(mark)!r}, 'w')")}, 4),
        "open": pickle.dumps({"w": Hostile(open, str(mark), "w")}, 2),
        "getattr": pickle.dumps({"w": Hostile(getattr, "", "join")}, 2),
        "torch.load": b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R.",
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "extension": b"\x80\x02\x82\x01.",
        "dotted name": b"\x80\x02ctorch\nSize.__class__\n)R.",
        "newline in the module": b"\x80\x04\x8c\x06torch\n\x8c\x04Size\x93.",
        "global called with a list": b"\x80\x02ctorch\nSize\n](K\x01eR.",
        "a dtype called": b"\x80\x02ctorch\nfloat32\n)R.",
        "size of a dict": b"\x80\x02ctorch\nSize\n}\x85R.",
        "call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "string of 4 GB": b"\x80\x02X\xff\xff\xff\xff",
        "integer of 255 bytes": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
        "memo index of 4 G": b"\x80\x02Nr\xff\xff\xff\xff0.",
        "recall of nothing": b"\x80\x02h\x07.",
        "empty stack": b"\x80\x02R.",
        "mark popped": b"\x80\x02(.",
        "no mark": b"\x80\x02Nt.",
        "no end": b"\x80\x02}",
        "protocol 9": b"\x80\x09}.",
        "endless": b"\x80\x02" + b"N" * 200_000,
        "deep": b"\x80\x02" + b"N" + b"\x85" * 150_000 + b".",
        "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "doubling": b"\x80\x02)" + b"q\x00h\x00\x86" * 5000 + b".",
        "list": b"\x80\x02].",
        "number in the dict": b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
        "integer keys": b"\x80\x02}K\x01K\x01s.",
        "odd items": b"\x80\x02}(X\x01\x00\x00\x00au.",
        "name twice": b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.",
        "attributes of a global": b"\x80\x02ctorch\nSize\n}b.",
        "persistent id of text": b"\x80\x02X\x01\x00\x00\x00aQ.",
    }


def test_hostile_pickles_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllm.checkpoint.state_dict.MAX_OPCODES", 190_000)
    mark = tmp_path / "ran"
    path = save(tmp_path, {"w": torch.ones(1)})
    for kind, data in hostile_pickles(mark).items():
        with pytest.raises(StateDictError):
            read_state_dict(data)
        assert not mark.exists(), kind
    evil = hostile_pickles(mark)["os.system"]
    rewrite(path, lambda entries: entries.update({"pytorch_model/data.pkl": evil}))
    with pytest.raises(CheckpointError, match=r"wants to load 'posix.system'.*nothing of it was run"):
        open_checkpoint(tmp_path)
    assert not mark.exists()


def tensor_pickle(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    count: int = 6,
    key: str = "0",
    storage: str = "FloatStorage",
) -> bytes:
    """The pickle of {"w": one tensor}, as torch writes it."""

    def number(n: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", n)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    stored = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text(key) + text("cpu") + number(count)
    sizes = b"".join(b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"tQ" + number(offset) + sizes + b"\x89}tR"
    return b"\x80\x02}" + text("w") + tensor + b"s."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), (3, 1), 1), "reaches element 6 of a storage of 6"),
        (((2, 3), (4, 1)), "reaches element 6 of a storage of 6"),
        (((2, 3), (3, 1), -1), "no storage or no offset"),
        (((2, -3), (3, 1)), "shape of at most 16 non-negative"),
        (((2, 3), (3, -1)), "strides of at most 16 non-negative"),
        (((2, 3), (3,)), "do not fit together"),
        (((7,), (0,)), "7 elements in a storage of 6"),
        (((2**30, 2**30), (0, 0)), "elements in a storage of 6"),
        (((2**62, 2**62, 4), (0, 0, 1)), "overflows 63 bits"),
        (((2, 3), (3, 1), 0, 7), "claims a storage of 28 bytes, the file has 24"),
        (((2, 3), (3, 1), 0, -1), "class, key and number"),
        (((2, 3), (3, 1), 0, 6, "9"), "needs the storage data/9, which is not there"),
        (((2, 3), (3, 1), 0, 6, "../version"), "which is not there"),
        (((2, 3), (3, 1), 0, 6, "0", "DoubleStorage"), "claims a storage of 48 bytes"),
        (((2, 3), (3, 1), 0, 6, "0", "QInt8Storage"), "wants to load 'torch.QInt8Storage'"),
        (((2, 3), (3, 1), 0, 24, "0", "UntypedStorage"), "do not fit together"),
    ],
)
def test_lying_tensors(tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
    path = save(tmp_path, {"w": torch.arange(6.0).reshape(2, 3)})
    rewrite(path, lambda entries: entries.update({"pytorch_model/data.pkl": tensor_pickle((2, 3), (3, 1))}))
    check_equal(tmp_path, {"w": torch.arange(6.0).reshape(2, 3)})
    rewrite(path, lambda entries: entries.update({"pytorch_model/data.pkl": tensor_pickle(*arguments)}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_other_formats_and_damage(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)

    path = save(tmp_path, TENSORS, _use_new_zipfile_serialization=False)
    refused("the one before torch 1.6, save its state dict again")
    path.write_bytes(b"GGUF" + bytes(100))
    refused("no zip signature")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused("Git LFS pointer")
    save(tmp_path, [torch.ones(1)])
    refused("it holds a list")
    save(tmp_path, {"model": {"w": torch.ones(1)}, "epoch": 3})
    refused(r"not: 'model' \(dict\), 'epoch' \(int\)")
    save(tmp_path, TENSORS)
    rewrite(path, lambda entries: None, zipfile.ZIP_DEFLATED)
    refused("compressed or encrypted")
    save(tmp_path, TENSORS)
    rewrite(path, lambda entries: entries.update({"pytorch_model/byteorder": b"big"}))
    refused("big-endian")
    save(tmp_path, TENSORS)
    rewrite(path, lambda entries: entries.update({"other/data.pkl": b"\x80\x02}."}))
    refused("one data.pkl, this one 2")


def test_mutated_archives_only_raise_checkpoint_errors(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.arange(12.0).reshape(3, 4).t(), "b": torch.ones(2, 3).bfloat16()})
    whole = path.read_bytes()
    pickle_begin = whole.index(b"\x80\x02")
    rng = random.Random(5)
    for i in range(1500):
        edited = bytearray(whole)
        if i % 5 == 0:
            edited = edited[: rng.randrange(len(edited))]
        for _ in range(rng.randint(1, 3)):
            span = (pickle_begin, pickle_begin + 400) if i % 2 else (0, len(edited))
            edited[min(rng.randrange(*span), len(edited) - 1)] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.unlink()
        path.write_bytes(edited or b"P")
        try:
            with open_checkpoint(tmp_path) as checkpoint:
                for name in checkpoint.names():
                    assert checkpoint.tensor(name).shape == checkpoint.shape(name)
        except CheckpointError:
            continue


def test_views_are_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.ones(1024).bfloat16()})
    with open_checkpoint(tmp_path) as checkpoint:
        array = checkpoint.tensor("w")
        assert array.__array_interface__["data"][0] % 64 == 0
        assert checkpoint.dtype("w") == "BF16"
        assert not array.flags.owndata
        np.testing.assert_array_equal(array, as_numpy(torch.load(path, weights_only=True)["w"]))
