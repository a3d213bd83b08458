"""Thresholds of the executor that differ between machines: measured by `pyllm tune`, kept in a small table, and used
by every model from then on. None of them changes a result.

The table is $PYLLM_TUNING, or tuning.json in ~/.cache/pyllm (or under $XDG_CACHE_HOME): a JSON object from processor,
kernels, threads and version to thresholds. What is not in it runs with the defaults of csrc/plan.h.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..program.batch import Batch, KvCache
from .packed_cache import user_cache

REPEAT_ROWS = (8, 16, 24)  # candidates; the last is the most that the executor has room for (csrc/plan.h)
OWN_ROWS = (64, 128, 256)
NEVER = 2**40
RUNS = 5
BLOCK_TOKENS = 32

log = logging.getLogger("pyllm")


@dataclass(frozen=True)
class Thresholds:
    """repeat_rows: up to so many rows of a step every worker makes all inputs of matmuls for itself, instead of sharing
    them at the price of barriers. own_rows: from so many rows of each worker on it takes whole rows."""

    repeat_rows: int
    own_rows: int


def path() -> Path:
    """Where the table is."""
    if chosen := os.environ.get("PYLLM_TUNING"):
        return Path(chosen)
    return user_cache() / "tuning.json"


def key(isa: str, num_threads: int) -> str:
    """The row of this machine."""
    import pyllm  # its version is not there yet while the package is being imported

    return " | ".join((_processor(), isa, str(num_threads), pyllm.__version__))


def kept(isa: str, num_threads: int) -> Thresholds | None:
    """What was measured here; None: nothing, or the table is damaged, which is logged."""
    try:
        table = json.loads(path().read_text())
        row = table.get(key(isa, num_threads))
        if row is None:
            return None
        found = Thresholds(int(row["repeat_rows"]), int(row["own_rows"]))
        if 1 <= found.repeat_rows <= REPEAT_ROWS[-1] and 1 <= found.own_rows <= NEVER:
            return found
        raise ValueError("thresholds out of range")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("[tune] %s is damaged (%s) and is not used; run pyllm tune", path(), error)
        return None


def keep(isa: str, num_threads: int, found: Thresholds) -> Path:
    """Adds a row to the table, which is replaced whole. Raises OSError."""
    try:
        table = json.loads(path().read_text())
    except (OSError, ValueError, RecursionError):
        table = {}
    if not isinstance(table, dict):
        table = {}
    table[key(isa, num_threads)] = asdict(found)
    path().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path().parent, prefix=".tuning", delete=False) as file:
        file.write(json.dumps(table, indent=2) + "\n")
    os.replace(file.name, path())
    return path()


def measure(
    run: Callable[[Batch, KvCache], object],
    new_cache: Callable[[], KvCache],
    set_sharing: Callable[[int, int], None],
    *,
    num_threads: int,
    max_rows: int,
) -> Thresholds:
    """Times steps of one text both ways at each candidate. Leaves the thresholds set that it returns."""

    def faster(rows: int, one: tuple[int, int], other: tuple[int, int]) -> bool:
        """Whether `one` is no slower than `other`, taken in turn."""
        times: dict[tuple[int, int], list[float]] = {one: [], other: []}
        cache = new_cache()
        batch = _text(rows, cache)
        for turn in range(RUNS + 1):
            for sharing, seconds in times.items():
                set_sharing(*sharing)
                start = time.perf_counter()
                run(batch, cache)
                if turn > 0:
                    seconds.append(time.perf_counter() - start)
        return statistics.median(times[one]) <= statistics.median(times[other])

    repeat_rows, own_rows = 4, NEVER
    for rows in REPEAT_ROWS:
        if rows > max_rows or not faster(rows, (REPEAT_ROWS[-1], NEVER), (1, NEVER)):
            break
        repeat_rows = rows
    for rows in reversed(OWN_ROWS):
        if rows * num_threads > max_rows:
            continue
        if not faster(rows * num_threads, (REPEAT_ROWS[-1], 1), (REPEAT_ROWS[-1], NEVER)):
            break
        own_rows = rows
    set_sharing(repeat_rows, own_rows)
    return Thresholds(repeat_rows, own_rows)


def _text(rows: int, cache: KvCache) -> Batch:
    blocks = [cache.allocate() for _ in range(-(-rows // BLOCK_TOKENS))]
    return Batch(
        ids=np.ones(rows, np.int32),
        positions=np.arange(rows, dtype=np.int32),
        starts=np.array([0, rows], np.int32),
        context=np.array([rows], np.int32),
        block_table=np.array([blocks], np.int32),
        logit_rows=np.array([rows - 1], np.int32),
    )


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
