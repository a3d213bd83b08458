"""Packed weights on disk: the same bits as packing, nothing from files that are damaged, and room that is bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pyllm._C import Checksum
from pyllm.checkpoint import open_checkpoint
from pyllm.devices import packed_cache
from pyllm.devices.cpu import CpuRunner, ExecutorWeights
from pyllm.errors import ArrayError
from pyllm.models import bind, network_of
from pyllm.program.batch import Batch

pytestmark = pytest.mark.cpu_only("its packed weights")

FIXTURE = Path(__file__).parent / "fixtures" / "llama"
KEY = "k" * 64


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_PACKED_CACHE_DIR", str(tmp_path / "packed"))
    monkeypatch.delenv("PYLLM_PACKED_CACHE", raising=False)
    return tmp_path / "packed"


def runner(num_threads: int = 1) -> CpuRunner:
    checkpoint = open_checkpoint(FIXTURE)
    network = network_of(checkpoint)
    return CpuRunner(network, bind(network, checkpoint), dtype="bfloat16", num_threads=num_threads)


def empty(like: CpuRunner, num_threads: int = 2) -> CpuRunner:
    """A runner of the same program that has no weights yet."""
    from pyllm import _C
    from pyllm.devices.lowering import Lowering

    other = object.__new__(CpuRunner)
    other.__dict__.update(like.__dict__)
    other._executor = _C.Executor(Lowering(like.network, "bfloat16").program, num_threads, None)
    return other


def logits(of: CpuRunner) -> bytes:
    cache = of.new_cache()
    batch = _prefill(cache.allocate())
    return of.run(batch, cache).tobytes()


def _prefill(block: int) -> Batch:
    ids = np.array([5, 9, 2], np.int32)
    return Batch(
        ids=ids,
        positions=np.arange(3, dtype=np.int32),
        starts=np.array([0, 3], np.int32),
        context=np.array([3], np.int32),
        block_table=np.array([[block]], np.int32),
        logit_rows=np.array([2], np.int32),
    )


def test_restored_weights_give_the_same_bits_at_any_number_of_threads() -> None:
    packed = runner()
    path = packed_cache.keep(ExecutorWeights(packed._executor), KEY)
    assert path is not None
    assert path.stat().st_size == packed_cache.DATA + packed._executor.packed().nbytes
    fresh = empty(packed)
    assert packed_cache.restore(ExecutorWeights(fresh._executor), KEY)
    assert bytes(fresh._executor.packed()) == bytes(packed._executor.packed())
    assert fresh._executor.checksum() == packed._executor.checksum()
    assert logits(fresh) == logits(packed)


@pytest.mark.parametrize("damage", ["flip", "short", "header", "empty", "other key", "text"])
def test_a_damaged_file_is_not_used_and_is_removed(damage: str) -> None:
    packed = runner()
    path = packed_cache.keep(ExecutorWeights(packed._executor), KEY)
    assert path is not None
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[packed_cache.DATA + len(content) // 3] ^= 1
    elif damage == "short":
        del content[len(content) // 2 :]
    elif damage == "header":
        content[packed_cache.DATA - 4000] ^= 0xFF
        content[10] ^= 0xFF
    elif damage == "empty":
        content.clear()
    elif damage == "other key":
        content[: packed_cache.DATA] = content[: packed_cache.DATA].replace(b"k" * 64, b"j" * 64)
    else:
        content[:] = b"not a file of ours"
    path.write_bytes(content)
    fresh = empty(packed)
    assert not packed_cache.restore(ExecutorWeights(fresh._executor), KEY)
    assert not path.exists()
    assert not any(bytes(fresh._executor.packed()[:4096])), "nothing is left of what was read"


def test_nothing_is_read_or_written_when_turned_off(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = runner()
    monkeypatch.setenv("PYLLM_PACKED_CACHE", "0")
    assert packed_cache.keep(ExecutorWeights(packed._executor), KEY) is None
    assert not cache_folder.exists()
    assert not packed_cache.restore(ExecutorWeights(empty(packed)._executor), KEY)


def test_concurrent_writers_and_readers_see_whole_files() -> None:
    packed = runner()
    packed_cache.keep(ExecutorWeights(packed._executor), KEY)
    restored = []

    def write() -> None:
        for _ in range(5):
            packed_cache.keep(ExecutorWeights(packed._executor), KEY)

    def read() -> None:
        restored.extend([packed_cache.restore(ExecutorWeights(empty(packed, 1)._executor), KEY) for _ in range(5)])

    threads = [threading.Thread(target=each) for each in (write, read, write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert restored == [True] * 10


def test_the_least_recently_used_files_make_room(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ExecutorWeights(runner()._executor)
    first, second = (packed_cache.keep(weights, name * 64) for name in "ab")
    assert first is not None
    assert second is not None
    os.utime(first, (1, 1))
    size = first.stat().st_size
    monkeypatch.setenv("PYLLM_PACKED_CACHE_GB", str(2.5 * size / 1e9))
    assert packed_cache.keep(weights, "c" * 64) is not None
    assert sorted(path.name[0] for path in cache_folder.iterdir()) == ["b", "c"]
    monkeypatch.setenv("PYLLM_PACKED_CACHE_GB", str(0.5 * size / 1e9))
    assert packed_cache.keep(weights, "d" * 64) is None
    monkeypatch.setenv("PYLLM_PACKED_CACHE_GB", "many")
    assert packed_cache.keep(weights, "e" * 64) is None


def test_the_name_follows_content_recipe_and_version(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 4096)
    before = packed_cache.content_of([file])
    assert packed_cache.content_of([file]) == before
    changed = bytearray(file.read_bytes())
    changed[500_000] ^= 1
    status = file.stat()
    file.write_bytes(changed)
    assert packed_cache.content_of([file]) != before, "the time of change tells"
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed[: packed_cache.PAGE] = bytes(packed_cache.PAGE)
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert packed_cache.content_of([file]) != before, "so does what is in it"
    assert packed_cache.key_of(before, "int8") != packed_cache.key_of(before, "int4")


def test_the_name_follows_the_config_from_which_tensors_may_be_computed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = packed_cache.key_in(tmp_path, "int8")
    assert packed_cache.key_in(tmp_path, "int8") == before
    (tmp_path / "config.json").write_text('{"scale": 2}')
    assert packed_cache.key_in(tmp_path, "int8") != before


def test_a_checksum_does_not_depend_on_runs_and_threads(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (7 << 20) // 2 + 13).astype(np.uint8)
    (tmp_path / "file").write_bytes(values.tobytes())
    found = set()
    for threads, run in [(1, len(values)), (3, len(values)), (2, 1 << 20), (3, 2 << 20)]:
        added, read = Checksum(threads), Checksum(threads)
        for begin in range(0, len(values), run):
            buffer = np.zeros(len(values[begin : begin + run]), np.uint8)
            read.read(str(tmp_path / "file"), begin, buffer)
            added.add(values[begin : begin + run])
            assert np.array_equal(buffer, values[begin : begin + run])
        found |= {added.value, read.value}
    assert len(found) == 1
    values[-1] ^= 1
    last = Checksum(2)
    last.add(values)
    assert last.value not in found
    with pytest.raises(ArrayError, match="bytes"):
        last.add(values.astype(np.int32))  # type: ignore[arg-type]
