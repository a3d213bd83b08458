"""How far two arrays lie apart, in the numbers that reports show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

DECADES = tuple(range(-9, 2))  # exponents of the histogram's bins: ... up to 1e-9, 1e-8, ..., 10, and more
POINTS = 400  # of one pass, in the scatter plot


@dataclass(frozen=True)
class Difference:
    """max_abs, mean_abs: of the differences. deviation: the reference's standard deviation, which they are to be seen
    beside. top1: the share of rows with the same largest entry; top5: the mean share of the five largest entries that
    both have. by_row: the largest difference in each row. histogram: how many differences lie in each decade.
    points: (reference, difference) of some entries."""

    max_abs: float
    mean_abs: float
    deviation: float
    top1: float
    top5: float
    by_row: list[float] = field(repr=False)
    histogram: list[int] = field(repr=False)
    points: list[tuple[float, float]] = field(repr=False)


def difference(found: Floats, expected: Floats) -> Difference:
    """Of two arrays [T, n] (or [n], one row) of the same shape. A row at a time: logits are large."""
    ours, theirs = np.atleast_2d(found), np.atleast_2d(expected)
    rows, width = theirs.shape
    edges = [-np.inf, *(float(exponent) for exponent in DECADES), np.inf]
    picked = np.sort(np.random.default_rng(0).choice(theirs.size, min(POINTS, theirs.size), replace=False))
    histogram = np.zeros(len(edges) - 1, np.int64)
    by_row, points, five = [], [], min(5, width)
    sums = np.zeros(3)  # of |difference|, of the reference, of its square
    first = shared = 0
    for at, (mine, known) in enumerate(zip(map(_double, ours), map(_double, theirs), strict=True)):
        apart = mine - known
        size = np.abs(apart)
        by_row.append(float(size.max()))
        sums += size.sum(), known.sum(), (known**2).sum()
        first += int(mine.argmax() == known.argmax())
        shared += len(set(_largest(mine, five)) & set(_largest(known, five)))
        with np.errstate(divide="ignore"):
            histogram += np.histogram(np.log10(size[np.isfinite(size)]), edges)[0]
        columns = picked[(picked >= at * width) & (picked < (at + 1) * width)] - at * width
        points += [(float(known[column]), float(apart[column])) for column in columns]
    mean_abs, mean, mean_square = sums / theirs.size
    return Difference(
        max_abs=float(np.max(by_row)),
        mean_abs=float(mean_abs),
        deviation=float(np.sqrt(max(mean_square - mean**2, 0.0))),
        top1=first / rows,
        top5=shared / (rows * five),
        by_row=by_row,
        histogram=histogram.tolist(),
        points=points,
    )


def _largest(row: NDArray[np.float64], count: int) -> list[int]:
    """Where the largest entries are, in no order."""
    places: list[int] = np.argpartition(row, len(row) - count)[len(row) - count :].tolist()
    return places


def _double(row: Floats) -> NDArray[np.float64]:
    return row.astype(np.float64)
