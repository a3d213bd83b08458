"""Which weight files a folder has, and their tensors as one table: single files, or shards named by an index."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, ModelNotFoundError
from .json_file import read_json_object
from .mapped import TensorEntry, refuse
from .safetensors import read_safetensors
from .torch_zip import read_torch_zip

# In order of preference: a mapped safetensors file needs no interpretation of foreign bytecode.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OTHER_SUFFIXES = (".safetensors", ".bin", ".gguf", ".h5", ".pt", ".pth", ".msgpack")
MAX_SHARDS = 4096


def find_weights(folder: Path) -> Path | None:
    """The weight file or index to load, or None."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def read_weights(folder: Path) -> dict[str, TensorEntry]:
    """Name -> entry of all tensors in `folder`. Raises ModelNotFoundError or CheckpointError."""
    path = find_weights(folder)
    if path is None:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in OTHER_SUFFIXES)
        there = f"it has {', '.join(others)}" if others else "it has no weight file"
        raise ModelNotFoundError(
            f"[load] a model folder holds one of {', '.join(WEIGHT_FILES)}, {folder} does not: {there}, "
            "download the safetensors files or rename them"
        )
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_file(path)


def _read_file(path: Path) -> dict[str, TensorEntry]:
    return read_safetensors(path) if path.name.endswith(".safetensors") else read_torch_zip(path)


def _read_shards(index: Path) -> dict[str, TensorEntry]:
    weight_map = _read_index(index)
    shards = list(dict.fromkeys(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"[checkpoint] {index.name} names {len(shards)} shards, {len(missing)} are missing in {index.parent}: "
            f"{', '.join(missing)}. Download them"
        )
    tables: dict[str, dict[str, TensorEntry]] = {}
    try:
        for shard in shards:
            tables[shard] = _read_file(index.parent / shard)
        refuse(index, _compare(weight_map, tables))
    except CheckpointError:
        for table in tables.values():
            close_files(table)
        raise
    return {name: tables[shard][name] for name, shard in weight_map.items()}


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> shard file name, which is a plain name in the same folder."""
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(index, ["it must have an object `weight_map` from tensor names to shard names"])
    assert isinstance(weight_map, dict)
    suffix = ".safetensors" if index.name.startswith("model.safetensors") else ".bin"
    bad = dict.fromkeys(str(shard) for shard in weight_map.values() if not _is_shard_name(shard, suffix))
    refuse(index, [f"{shard!r:.80} is not the name of a {suffix} file in the same folder" for shard in bad])
    if len(set(weight_map.values())) > MAX_SHARDS:
        refuse(index, [f"it names more than {MAX_SHARDS} shards"])
    return weight_map


def _is_shard_name(shard: object, suffix: str) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(suffix)
        and shard.isprintable()
        and not any(mark in shard for mark in ("/", "\\", ":", ".."))
    )


def _compare(weight_map: dict[str, str], tables: dict[str, dict[str, TensorEntry]]) -> list[str]:
    """Where the index and the shards disagree."""
    problems = [f"{name!r} is not in {shard}" for name, shard in weight_map.items() if name not in tables[shard]]
    for shard, table in tables.items():
        problems += [f"{name!r} of {shard} is not in the index" for name in table if weight_map.get(name) != shard]
    return problems


def close_files(table: dict[str, TensorEntry]) -> None:
    for file in {id(entry.file): entry.file for entry in table.values()}.values():
        file.close()
