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
    """Of two arrays [T, n] (or [n], one row) of the same shape."""
    ours, theirs = (np.atleast_2d(array).astype(np.float64) for array in (found, expected))
    apart = ours - theirs
    size = np.abs(apart)
    five = min(5, ours.shape[1])
    best, known = (np.argsort(-rows, axis=1, kind="stable")[:, :five] for rows in (ours, theirs))
    shared = [len(set(a) & set(b)) / five for a, b in zip(best.tolist(), known.tolist(), strict=True)]
    edges = [-np.inf, *(float(exponent) for exponent in DECADES), np.inf]
    with np.errstate(divide="ignore"):
        counts, _ = np.histogram(np.log10(size[np.isfinite(size)]), edges)
    some = np.random.default_rng(0).choice(size.size, min(POINTS, size.size), replace=False)
    return Difference(
        max_abs=float(size.max()),
        mean_abs=float(size.mean()),
        deviation=float(theirs.std()),
        top1=float((best[:, 0] == known[:, 0]).mean()),
        top5=float(np.mean(shared)),
        by_row=[float(value) for value in size.max(axis=1)],
        histogram=[int(count) for count in counts],
        points=[(float(theirs.flat[at]), float(apart.flat[at])) for at in np.sort(some)],
    )
