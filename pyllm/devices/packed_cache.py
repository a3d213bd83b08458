"""Packed weights kept on disk, so that a model whose packing takes long loads at the speed of the disk the next time.

A file a model, recipe and kind of device in $PYLLM_PACKED_CACHE_DIR (default: ~/.cache/pyllm/packed, or under
$XDG_CACHE_HOME): a page that names it, then the weights as the device wants them. It is written under another name and
then renamed, so readers see whole files only and writers don't disturb each other; what does not have its checksum is
not used. The least recently used files go where all together exceed $PYLLM_PACKED_CACHE_GB (default 20).
PYLLM_PACKED_CACHE=0: nothing is read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

SLOW = 1.0  # seconds of packing from which a file is worth its room
LAYOUT = 2  # raised whenever the packed layouts of csrc/kernels.h or the choice of quantised weights change
MAGIC = b"PYLLMPK1"
DATA = 4096  # where the weights start: a page, so that reads are aligned
SAMPLES = 64  # pages of a file that are read to tell its content
PAGE = 4096
SUFFIX = ".packed"

log = logging.getLogger("pyllm")


class Weights(Protocol):
    """What is kept: one device's packed weights as one run of bytes."""

    @property
    def nbytes(self) -> int:
        """How many there are, known before they are packed."""

    def write(self, file: BinaryIO) -> int:
        """Appends them to a file; their checksum, below 2^64. Raises OSError."""

    def read(self, file: str, offset: int, checksum: int) -> bool:
        """Takes them from there instead of packing; False, with nothing loaded, where the bytes are not those."""


def load(weights: Weights, key: str | None, pack: Callable[[], None]) -> None:
    """Restores the weights, or packs them, and keeps them where that took long. key None: only packs."""
    if key is not None and restore(weights, key):
        return
    start = time.perf_counter()
    pack()
    if key is not None and time.perf_counter() - start > SLOW:
        keep(weights, key)


def content_of(files: Iterable[Path]) -> str:
    """Names the content of files without reading them whole: size, time of change, and a hash over their first page
    and 64 more, spread evenly. A blob of the Hub's cache is named by its hash already."""
    digest = hashlib.sha256()
    for file in sorted(files):
        real = file.resolve()
        status = real.stat()
        digest.update(f"{file.name}\0{real.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        with real.open("rb") as data:
            for i in range(SAMPLES + 1):
                data.seek(i * max(status.st_size - PAGE, 0) // SAMPLES)
                digest.update(data.read(PAGE))
    return digest.hexdigest()


def key_of(content: str, recipe: str) -> str:
    """The name of packed weights: of what, how, by which version."""
    import pyllm  # its version is not there yet while the package is being imported

    return hashlib.sha256("\0".join((content, recipe, pyllm.__version__, str(LAYOUT))).encode()).hexdigest()


def key_in(model: Path, recipe: str) -> str:
    """key_of() the weight files of a model's folder, and of its config, from which tensors may be computed."""
    patterns = ("config.json", "*.safetensors", "*.bin", "*.pth", "*.pt")
    files = {file for pattern in patterns for file in model.glob(pattern)}
    return key_of(content_of(files), recipe)


def user_cache() -> Path:
    """Where pyllm keeps what it has worked out: ~/.cache/pyllm, or under $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm"


def folder() -> Path | None:
    """Where the files are, None where PYLLM_PACKED_CACHE=0."""
    if os.environ.get("PYLLM_PACKED_CACHE", "1") == "0":
        return None
    if chosen := os.environ.get("PYLLM_PACKED_CACHE_DIR"):
        return Path(chosen)
    return user_cache() / "packed"


def restore(weights: Weights, key: str) -> bool:
    """Loads weights from their file; False where there is none, or it is damaged (it is removed then)."""
    where = folder()
    if where is None:
        return False
    path = where / (key + SUFFIX)
    try:
        with path.open("rb") as file:
            head = file.read(DATA)
            whole = os.fstat(file.fileno()).st_size == DATA + weights.nbytes
    except OSError:
        return False
    checksum = _checksum_in(head, key)
    if whole and checksum is not None and weights.read(str(path), DATA, checksum):
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return True
    log.warning("[load] %s is damaged and is removed; the model is packed again", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return False


def keep(weights: Weights, key: str) -> Path | None:
    """Writes weights to their file; None where that fails, which is logged: it only costs time."""
    where = folder()
    if where is None:
        return None
    path = where / (key + SUFFIX)
    temporary = None
    try:
        where.mkdir(parents=True, exist_ok=True)
        _make_room(where, weights.nbytes)
        number, name = tempfile.mkstemp(dir=where, prefix=".", suffix=SUFFIX)
        temporary = Path(name)
        with open(number, "wb") as file:
            file.write(bytes(DATA))
            checksum = weights.write(file)
            file.seek(0)
            file.write(MAGIC + json.dumps({"key": key, "checksum": checksum}).encode())
        os.replace(temporary, path)
    except OSError as error:
        log.warning("[load] packed weights could not be kept in %s: %s", where, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return None
    return path


def _checksum_in(head: bytes, key: str) -> int | None:
    """The checksum in a file's head, None where that is not one of ours for this key."""
    if len(head) != DATA or not head.startswith(MAGIC):
        return None
    try:
        fields = json.loads(head[len(MAGIC) :].rstrip(b"\0"))
        return int(fields["checksum"]) if fields["key"] == key and 0 <= int(fields["checksum"]) < 2**64 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _make_room(where: Path, wanted: int) -> None:
    """Removes the least recently used files until `wanted` bytes more stay below the limit. Raises OSError where they
    alone exceed it."""
    try:
        limit = float(os.environ.get("PYLLM_PACKED_CACHE_GB", "20")) * 1e9
    except ValueError:
        raise OSError("PYLLM_PACKED_CACHE_GB must be a number of gigabytes; set one or unset it") from None
    if wanted > limit:
        raise OSError(f"{wanted / 1e9:.1f} GB exceed PYLLM_PACKED_CACHE_GB; raise it")
    found = []
    for path in where.glob("*" + SUFFIX):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = wanted + sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
