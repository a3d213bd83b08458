"""Opening model folders: safetensors and shards against the safetensors library, damaged files, pages given back."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pyllm.checkpoint import open_checkpoint
from pyllm.errors import CheckpointError, InvalidConfigError, InvalidOptionError, ModelNotFoundError, OutOfMemoryError

TENSORS: dict[str, np.ndarray] = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "c.f16": np.linspace(-3, 3, 6).astype(np.float16),
    "d.i64": np.array([[1, -2], [3, 1 << 40]]),
    "e.empty": np.zeros((0, 5), np.float32),
    "f.scalar": np.array(2.5),
    "g.u8": np.arange(3, dtype=np.uint8),
    "h.bool": np.array([True, False, True]),
    "i.i32": np.array([-(1 << 31)], np.int32),
    "j.u16": np.array([[0, 65535]], np.uint16),
}


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def write_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)


def check_equal(folder: Path, expected: dict[str, np.ndarray]) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert sorted(checkpoint.names()) == sorted(expected)
        for name, wanted in expected.items():
            array = checkpoint.tensor(name)
            assert checkpoint.shape(name) == array.shape == wanted.shape
            assert array.dtype == wanted.dtype, name
            np.testing.assert_array_equal(array, wanted)
            assert not array.flags.writeable
            assert array.flags.aligned
            assert array.flags.c_contiguous


def test_every_dtype_equals_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, write_folder(tmp_path) / "model.safetensors", metadata={"format": "pt"})
    check_equal(tmp_path, TENSORS)
    with open_checkpoint(tmp_path) as checkpoint, safe_open(tmp_path / "model.safetensors", "np") as oracle:
        for name in oracle.keys():  # noqa: SIM118 (not a dict)
            assert checkpoint.dtype(name) == oracle.get_slice(name).get_dtype()


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensor = torch.linspace(-3, 3, 35).reshape(5, 7).bfloat16()
    save_file({"w": tensor}, write_folder(tmp_path) / "model.safetensors")
    check_equal(tmp_path, {"w": tensor.view(torch.uint16).numpy()})
    assert open_checkpoint(tmp_path).dtype("w") == "BF16"


def test_views_outlive_the_checkpoint_and_copy_nothing(tmp_path: Path) -> None:
    save_file({"w": np.ones(4096)}, write_folder(tmp_path) / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    first, second = checkpoint.tensor("w"), checkpoint.tensor("w")
    assert first.__array_interface__["data"] == second.__array_interface__["data"]
    checkpoint.close()
    assert first.sum() == 4096
    with pytest.raises(CheckpointError, match=r"closed, open"):
        checkpoint.tensor("w")


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * ((1 - len(header)) % 4)
    assert (8 + len(header)) % 4 == 1
    write_header(write_folder(tmp_path) / "model.safetensors", header, np.float32([1, -2]).tobytes())
    check_equal(tmp_path, {"w": np.float32([1, -2])})


def entry(**changes: Any) -> dict[str, Any]:
    """A valid entry of 16 bytes, with changes; a change to None drops the field."""
    fields = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    return {key: value for key, value in fields.items() if value is not None}


BIG = 1 << 62
MALFORMED: dict[str, tuple[Any, str]] = {
    "hole at the start": ({"w": entry(data_offsets=[4, 20])}, "a hole before 'w'"),
    "buffer longer than tensors": ({"w": entry(shape=[2], data_offsets=[0, 8])}, "end at byte 8 of a buffer of 16"),
    "buffer shorter than tensors": ({"w": entry(shape=[2, 4], data_offsets=[0, 32])}, "32 of a buffer of 16"),
    "overlap": ({"v": entry(), "w": entry(shape=[2], data_offsets=[8, 16])}, "an overlap at 'w'"),
    "same bytes twice": ({"v": entry(), "w": entry()}, "an overlap at 'w'"),
    "empty tensor inside another": ({"v": entry(), "w": entry(shape=[0], data_offsets=[8, 8])}, "an overlap at 'w'"),
    "hole between": (
        {"v": entry(shape=[1], data_offsets=[0, 4]), "w": entry(shape=[2], data_offsets=[8, 16])},
        "a hole before 'w': it begins at byte 8, the data before it ends at 4",
    ),
    "no tensors but data": ({}, "end at byte 0 of a buffer of 16"),
    "shape disagrees with offsets": ({"w": entry(shape=[3, 2])}, r"\[3, 2\] needs 24 bytes, its offsets span 16"),
    "dtype disagrees with offsets": ({"w": entry(dtype="F64")}, "needs 32 bytes"),
    "unknown dtype": ({"w": entry(dtype="Q4_K")}, "'Q4_K', known are F64"),
    "dtype not text": ({"w": entry(dtype=["F32"])}, "dtype 'list'"),
    "backwards offsets": ({"w": entry(data_offsets=[16, 0])}, "ends at 0 before it begins at 16"),
    "negative offset": ({"w": entry(data_offsets=[-16, 0])}, "two non-negative integers"),
    "offset beyond 63 bits": ({"w": entry(data_offsets=[0, 1 << 63])}, "two non-negative integers"),
    "one offset": ({"w": entry(data_offsets=[16])}, "two non-negative integers"),
    "offset not integer": ({"w": entry(data_offsets=[0, 16.0])}, "two non-negative integers"),
    "offset true": ({"w": entry(data_offsets=[False, 16])}, "two non-negative integers"),
    "negative dimension": ({"w": entry(shape=[-2, -2])}, "non-negative integers"),
    "dimension not integer": ({"w": entry(shape=["2", 2])}, "non-negative integers"),
    "shape not a list": ({"w": entry(shape=4)}, "non-negative integers"),
    "too many dimensions": ({"w": entry(shape=[1] * 70 + [4])}, "at most 16"),
    "overflowing shape": ({"w": entry(shape=[BIG, BIG, BIG])}, "overflows 63 bits"),
    "overflowing shape with zero": ({"w": entry(shape=[BIG, BIG, 0], data_offsets=[0, 0])}, "overflows 63 bits"),
    "shape whose product wraps to the size": ({"w": entry(shape=[BIG + 1, 4])}, "overflows 63 bits"),
    "missing shape": ({"w": entry(shape=None)}, "exactly dtype, shape and data_offsets"),
    "extra field": ({"w": entry(scale=1)}, "exactly dtype, shape and data_offsets"),
    "entry not an object": ({"w": [0, 16]}, "exactly dtype, shape and data_offsets"),
    "metadata not text": ({"__metadata__": {"n": 1}, "w": entry()}, "__metadata__ must map strings"),
    "metadata not an object": ({"__metadata__": "pt", "w": entry()}, "__metadata__ must map strings"),
    "name twice": (b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2), "'w' appears twice"),
    "field twice": (b'{"w":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "'dtype' appears twice"),
    "header is a list": (b"[]", "must begin with '{'"),
    "leading space": (b' {"w":1}', "must begin with '{'"),
    "header is cut": (b'{"w":{"dtype":"F32"', "not valid JSON"),
    "text after the header": (b"{}{}", "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', "not valid JSON"),
    "NaN": (b'{"w":NaN}', "NaN is not JSON"),
    "deep nesting": (b'{"w":' + b"[" * 200_000, "not valid JSON"),
    "long integer": (b'{"w":' + b"9" * 100_000 + b"}", "100000 digits"),
    "bloated with entries": (b"{" + b'"":{},' * 1_000_000 + b"}", "too many for 65536 tensors"),
    "bloated with numbers": (b'{"w":[' + b"1," * 3_000_000 + b"1]}", "too many for 65536 tensors"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_header(tmp_path: Path, kind: str) -> None:
    header, message = MALFORMED[kind]
    write_header(write_folder(tmp_path) / "model.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1234567", "at least 8 bytes, this one 7"),
        (bytes(8), "must begin with"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "claims 100000001 bytes, the format allows 100000000"),
        (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
        ((3).to_bytes(8, "little") + b"{}", "claims 3 bytes, the file has 2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
    ],
)
def test_malformed_file(tmp_path: Path, content: bytes, message: str) -> None:
    (write_folder(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    header = {"x": entry(dtype="F3"), "y": entry(shape=[1]), "z": entry(data_offsets=[2, 1])}
    write_header(write_folder(tmp_path) / "model.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=r"'x' has dtype.*; 'y' of F32 \[1\] needs 4.*; 'z' ends at 1 before"):
        open_checkpoint(tmp_path)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to four random edits that keep most of the structure."""
    edited = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(edited))
        piece = rng.choice((b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"9", b"-", b"1e9", b"\xff", b"null"))
        action = rng.randrange(4)
        if action == 0:
            edited[at] = rng.randrange(256)
        elif action == 1:
            edited[at : at + 1] = piece
        elif action == 2:
            del edited[at : at + rng.randint(1, 9)]
        else:
            edited[at:at] = piece
        edited = edited or bytearray(b"{")
    return bytes(edited)


def test_mutated_headers_only_raise_checkpoint_errors(tmp_path: Path) -> None:
    """What pyllm accepts, the safetensors library accepts with the same shapes; all else is a CheckpointError."""
    path = write_folder(tmp_path) / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    rng = random.Random(20)
    accepted = 0
    for _ in range(3000):
        header = mutate(whole[8 : 8 + length], rng)
        claimed = rng.randrange(1 << 40) if rng.random() < 0.05 else None
        path.unlink()  # a new file is quicker than cutting the old one
        write_header(path, header, whole[8 + length :], claimed)
        try:
            checkpoint = open_checkpoint(tmp_path)
        except CheckpointError:
            continue
        accepted += 1
        for name in checkpoint.names():
            assert checkpoint.tensor(name).shape == checkpoint.shape(name)
        with safe_open(path, "np") as oracle:
            assert sorted(oracle.keys()) == sorted(checkpoint.names())
        checkpoint.close()
    assert 0 < accepted < 1500


def write_shards(folder: Path, change: Callable[[dict[str, str]], None] = lambda weight_map: None) -> None:
    names = sorted(TENSORS)
    weight_map = {}
    for i, part in enumerate((names[:4], names[4:]), 1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, write_folder(folder) / shard)
        weight_map |= dict.fromkeys(part, shard)
    change(weight_map)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_files(tmp_path: Path) -> None:
    write_shards(tmp_path)
    check_equal(tmp_path, TENSORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(x="model-1.safetensors", y="model-2.safetensors"), "2 are missing.*model-1.*, model-2"),
        (lambda m: m.update(x="model-00001-of-00002.safetensors"), "'x' is not in model-00001"),
        (lambda m: m.pop("a.weight"), "'a.weight' of model-00001-of-00002.safetensors is not in the index"),
        (lambda m: m.update({"a.weight": "model-00002-of-00002.safetensors"}), "'a.weight' is not in model-00002"),
        (lambda m: m.update(x="../model-00001-of-00002.safetensors"), "is not the name of a .safetensors file"),
        (lambda m: m.update(x="/etc/x.safetensors"), "is not the name of a .safetensors file"),
        (lambda m: m.update(x="..\\x.safetensors"), "is not the name of a .safetensors file"),
        (lambda m: m.update(x="pytorch_model.bin"), "is not the name of a .safetensors file"),
        (lambda m: m.update(x=3), "'3' is not the name of a .safetensors file"),
        (lambda m: m.clear(), "must have an object `weight_map`"),
    ],
)
def test_wrong_index(tmp_path: Path, change: Callable[[dict[str, str]], None], message: str) -> None:
    write_shards(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


MEASURE_RSS = """
import sys
from pyllm.checkpoint import open_checkpoint
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
checkpoint = open_checkpoint(sys.argv[1])
before = resident()
for name in checkpoint.names():
    checkpoint.tensor(name).sum()
read = resident()
for name in checkpoint.names():
    checkpoint.release(name)
released = resident()
peak = 0
for name in checkpoint.names():
    checkpoint.tensor(name).sum()
    peak = max(peak, resident())
    checkpoint.release(name)
same = all(checkpoint.tensor(name)[0] == i for i, name in enumerate(checkpoint.names()))
print(read - before, released - before, peak - before, same)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_release_keeps_resident_memory_low(tmp_path: Path) -> None:
    # 8 MB and a little each, so that neighbours share pages.
    tensors = {f"w{i}": np.full((2 << 20) + 13, i, np.float32) for i in range(8)}
    save_file(tensors, write_folder(tmp_path) / "model.safetensors")
    command = [sys.executable, "-c", MEASURE_RSS, str(tmp_path)]
    read, released, peak, same = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(read) > 64e6
    assert int(released) < 4e6
    assert int(peak) < 12e6
    assert same == "True"


def test_refused_address_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(TENSORS, write_folder(tmp_path) / "model.safetensors")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(OutOfMemoryError, match="ulimit -v"):
        open_checkpoint(tmp_path)


def test_configs(tmp_path: Path) -> None:
    save_file({"w": np.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidConfigError, match=r"holds config.json, .* does not, give the folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(InvalidConfigError, match=r"\[config.json\] must be JSON, .* at line 2 column 7"):
        open_checkpoint(tmp_path)
    for text, message in {"[1]": "holds a list", '{"a":1,"a":2}': "different values", "": "line 1 column 1"}.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidConfigError, match=message):
            open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"model_type": "ü", "inf": 1e999}).encode())
    (tmp_path / "generation_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InvalidConfigError, match=r"\[generation_config.json\] must be UTF-8, .* byte 7"):
        open_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_k": 5}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"model_type": "ü", "inf": float("inf")}
    assert checkpoint.generation_config == {"top_k": 5}


def test_wrong_folder(tmp_path: Path) -> None:
    save_file({"w": np.ones(1)}, write_folder(tmp_path / "stories") / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"no folder .*/storys, did you mean .*/stories\?") as caught:
        open_checkpoint(tmp_path / "storys")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(InvalidConfigError, match="did you mean its subfolder 'stories'"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelNotFoundError, match="is a file, give the folder"):
        open_checkpoint(tmp_path / "stories" / "model.safetensors")
    with pytest.raises(InvalidOptionError, match="revision selects a version on the Hub"):
        open_checkpoint(tmp_path / "stories", revision="main")
    (tmp_path / "stories" / "model.safetensors").rename(tmp_path / "stories" / "other.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"one of model.safetensors, .* it has other.safetensors"):
        open_checkpoint(tmp_path / "stories")


def test_unknown_tensor_names_the_nearest(tmp_path: Path) -> None:
    save_file({"wte.weight": np.ones(1)}, write_folder(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor 'wte.weigth', did you mean 'wte.weight'\?"):
        open_checkpoint(tmp_path).tensor("wte.weigth")
