"""Encoder steps, and the sources they leave: blocks of the cross cache, shared by every sequence of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..program.batch import BLOCK_TOKENS, Batch, Capture, KvCache, Runner, on_host

Wanted = str | Sequence[Sequence[int]]

ROWS_PER_ENCODE = 2048  # rows of one encoder step, unless a single source is longer


@dataclass
class Source:
    """An encoded source: its cross cache blocks, and how many tokens they hold. blocks [] once released."""

    length: int
    blocks: list[int] = field(default_factory=list)


def encode_batches(
    runner: Runner,
    cache: KvCache,
    texts: Sequence[Sequence[int]],
    *,
    cross: KvCache | None = None,
    type_ids: Sequence[Sequence[int]] | None = None,
    wanted: Wanted = "none",
    capture: Capture | None = None,
    rows_per_step: int = ROWS_PER_ENCODE,
) -> Iterator[tuple[list[NDArray[np.float32]], list[Source]]]:
    """Runs the `encode` program over texts (token ids, at least one each), as many together as fit a step.

    wanted: rows of the output: "none", "all", "first" (of each text), or a list of rows for each text. cross: where
    keys and values for a decoder go.
    Yields for each step the outputs float32 [rows, n] of its texts (copies) and their sources, which the receiver
    releases (`release`). A text's results do not depend on its neighbours.
    """
    for begin, end in _steps([len(text) for text in texts], rows_per_step):
        some = texts[begin:end]
        types = None if type_ids is None else type_ids[begin:end]
        own: list[list[int]] = []
        sources: list[Source] = []
        try:
            for text in some:
                own.append([])
                _allocate(cache, own[-1], len(text))
                if cross is not None:
                    sources.append(Source(len(text)))
                    _allocate(cross, sources[-1].blocks, len(text))
            rows = _rows(some, wanted if isinstance(wanted, str) else wanted[begin:end])
            batch = _batch(some, own, sources, types, rows)
            output = on_host(runner, runner.run(batch, cache, program="encode", cross=cross, capture=capture))
        except BaseException:
            for source in sources:
                release(cross, source)
            raise
        finally:
            for blocks in own:
                for block in blocks:
                    cache.release(block)
        yield _split(output, rows), sources


def release(cross: KvCache | None, source: Source) -> None:
    """Gives a source's blocks back; a second time does nothing."""
    while source.blocks and cross is not None:
        cross.release(source.blocks.pop())


def _steps(lengths: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts whose rows fit a step; one that is longer than a step goes alone."""
    begin = total = 0
    for index, length in enumerate(lengths):
        if index > begin and total + length > rows:
            yield begin, index
            begin, total = index, 0
        total += length
    if lengths:
        yield begin, len(lengths)


def _allocate(cache: KvCache, blocks: list[int], tokens: int) -> None:
    """Appends block by block, so that what was allocated is known when one is refused."""
    for _ in range(-(-tokens // BLOCK_TOKENS)):
        blocks.append(cache.allocate())  # noqa: PERF401


def _batch(
    texts: Sequence[Sequence[int]],
    own: list[list[int]],
    sources: list[Source],
    types: Sequence[Sequence[int]] | None,
    rows: Sequence[Sequence[int]],
) -> Batch:
    lengths = np.array([len(text) for text in texts], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    wanted = [begin + np.asarray(each, np.int32) for begin, each in zip(starts[:-1], rows, strict=True)]
    return Batch(
        ids=np.concatenate([np.asarray(text, np.int32) for text in texts]),
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        starts=starts,
        context=lengths,
        block_table=block_table(own),
        logit_rows=np.concatenate(wanted),
        token_types=None if types is None else np.concatenate([np.asarray(each, np.int32) for each in types]),
        cross_table=block_table([source.blocks for source in sources]) if sources else None,
        cross_context=lengths if sources else None,
    )


def block_table(blocks: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """int32 [S, longest], entries past a sequence's blocks are 0 and meaningless."""
    table = np.zeros((len(blocks), max(map(len, blocks))), np.int32)
    for row, each in zip(table, blocks, strict=True):
        row[: len(each)] = each
    return table


def _rows(texts: Sequence[Sequence[int]], wanted: Wanted) -> Sequence[Sequence[int]]:
    """The rows of each text's output."""
    if not isinstance(wanted, str):
        return wanted
    if wanted == "all":
        return [range(len(text)) for text in texts]
    return [range(wanted == "first")] * len(texts)


def _split(output: NDArray[np.float32], rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    if not any(rows):
        return []
    lengths = [len(each) for each in rows]
    ends = np.cumsum(lengths)
    return [output[end - length : end].copy() for length, end in zip(lengths, ends, strict=True)]
