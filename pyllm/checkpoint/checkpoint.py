"""A model folder opened for reading: configuration dicts and tensors as read-only views of the mapped weight files."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ..errors import CheckpointError, InvalidConfigError
from .codes import Codes, Kind
from .hub import find_folder
from .json_file import read_json_object
from .mapped import TensorEntry
from .weights import close_files, read_weights


class Checkpoint:
    """A Hugging Face model folder.

    folder: where it lies. config, generation_config: config.json and generation_config.json ({} without the latter).
    Nothing of the weights is read before `tensor`. Usable from several threads; a context manager that closes itself.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFoundError, InvalidConfigError or CheckpointError."""
        self.folder = folder
        self.config: dict[str, Any] = _read_config(folder)
        generation = folder / "generation_config.json"
        self.generation_config: dict[str, Any] = (
            read_json_object(generation, InvalidConfigError) if os.path.lexists(generation) else {}
        )
        self._entries = read_weights(folder)

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The stored type by safetensors' names: "F32", "BF16", ..."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Read-only array of `shape(name)`, little-endian; BF16 comes as uint16, F8 as uint8.

        A view of the mapped file. Copies are made only of tensors that torch stored strided and of unaligned ones.
        Raises CheckpointError for an unknown name.
        """
        return self._entry(name).array()

    def kind(self, name: str) -> Kind | None:
        """How a matrix is quantised; None: it is not (QuantizedCheckpoint)."""
        return None

    def codes(self, name: str) -> Codes | None:
        """The integers [outputs, inputs] of a quantised matrix whose kind has some."""
        return None

    def is_idle(self, name: str) -> bool:
        """Whether a tensor that the model lacks changes nothing: zeros that a quantiser wrote."""
        return False

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the kernel. Its arrays stay valid: using them reads the file again."""
        self._entry(name).release()

    def close(self) -> None:
        """Unmap the files; those that arrays still look into are unmapped with the last array."""
        close_files(self._entries)

    def _entry(self, name: str) -> TensorEntry:
        entry = self._entries.get(name)
        if entry is None:
            near = difflib.get_close_matches(name, self._entries, n=1)
            cure = f"did you mean {near[0]!r}?" if near else "`names()` lists them"
            raise CheckpointError(f"[checkpoint] {self.folder} has no tensor {name!r}, {cure}")
        return entry

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r}, {len(self._entries)} tensors)"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(child.name for child in folder.iterdir() if (child / "config.json").is_file())
        cure = f"did you mean its subfolder {inside[0]!r}?" if inside else "give the folder of a Hugging Face model"
        raise InvalidConfigError(f"[load] a model folder holds config.json, {folder} does not, {cure}")
    return read_json_object(path, InvalidConfigError)


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: bool = False,
) -> Checkpoint:
    """Open a model folder, or a Hub id (`org/name`) by way of huggingface_hub's cache.

    Args:
        model: a folder with config.json and weights, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        cache_dir: instead of huggingface_hub's own (HF_HOME, HF_HUB_CACHE).
        token: access token for a Hub id (else HF_TOKEN or the stored login).
        local_files_only: use the cache and never the network (also HF_HUB_OFFLINE=1).
        progress: show a download bar on stderr, if that is a terminal.

    Raises: ModelNotFoundError, InvalidConfigError, CheckpointError, InvalidOptionError.
    """
    folder = find_folder(
        model,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        progress=progress,
    )
    return Checkpoint(folder)
