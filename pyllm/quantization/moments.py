"""Second moments of what each matmul reads while a model reads a text: what error compensation weighs errors by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..program.batch import Batch, Capture, Runner

BLOCK_TOKENS = 32  # tokens in one KV block
MOST_BYTES = 1 << 30  # moments held at a time: more need another reading of the text

Buffers = dict[tuple[str, str], int]  # (program, buffer) -> columns


def chunks(ids: list[int], length: int, most: int) -> list[list[int]]:
    """The text in pieces of `length` tokens, `most` tokens altogether; a last piece of fewer than 2 is left out."""
    pieces = [ids[i : i + length] for i in range(0, min(len(ids), most), length)]
    return [piece for piece in pieces if len(piece) > 1]


def moments(
    runner: Runner, texts: list[list[int]], buffers: Buffers
) -> Iterator[dict[tuple[str, str], NDArray[np.float64]]]:
    """X^T X [columns, columns] of each buffer over all rows of all texts, in groups that fit MOST_BYTES; float64.

    The buffers must be those of one program, "step" or "encode", that needs no source.
    """
    groups: list[dict[tuple[str, str], int]] = [{}]
    for key, columns in buffers.items():
        if 8 * sum(n * n for n in (*groups[-1].values(), columns)) > MOST_BYTES and groups[-1]:
            groups.append({})
        groups[-1][key] = columns
    for group in groups:
        sums = {key: np.zeros((columns, columns)) for key, columns in group.items()}
        for text in texts:
            for key, rows in _read(runner, text, group).items():
                sums[key] += (rows.T @ rows).astype(np.float64)
        yield sums


def _read(runner: Runner, ids: list[int], group: Buffers) -> dict[tuple[str, str], NDArray[np.float32]]:
    """The rows of each buffer after one step over a text."""
    (program,) = {program for program, _ in group}
    cache = runner.new_cache(program)
    blocks = [cache.allocate() for _ in range(-(-len(ids) // BLOCK_TOKENS))]
    capture = Capture(buffers=tuple(name for _, name in group))
    length = len(ids)
    batch = Batch(
        ids=np.array(ids, np.int32),
        positions=np.arange(length, dtype=np.int32),
        starts=np.array([0, length], np.int32),
        context=np.array([length], np.int32),
        block_table=np.array([blocks], np.int32),
        logit_rows=np.arange(length, dtype=np.int32),
    )
    runner.run(batch, cache, program=program, capture=capture)
    return {(program, name): rows for name, rows in capture.values.items()}
