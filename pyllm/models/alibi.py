"""Slopes of ALiBi, the bias of attention scores by distance (Press et al. 2022), as two families compute them.

Both are powers of one base for a power of two of heads, in float32; they differ in what other numbers of heads get.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def bloom_slopes(heads: int) -> Floats:
    """float32 [heads], BLOOM and Falcon: 2^(-8 i / n) for the largest power of two n <= heads, then every other power
    of the base for 2n."""
    closest = 1 << (heads.bit_length() - 1)
    own = _powers(_base(closest), np.arange(1, closest + 1))
    between = _powers(_base(2 * closest), np.arange(1, 2 * (heads - closest) + 1, 2))
    return np.concatenate([own, between])


def mpt_slopes(heads: int, bias_max: float) -> Floats:
    """float32 [heads], MPT: 2^(-bias_max i / n) for the smallest power of two n >= heads; where there are fewer heads,
    those of even i come first."""
    count = 1 << (heads - 1).bit_length()
    exponents = np.arange(1, count + 1, dtype=np.float32) * np.float32(bias_max / count)
    slopes = np.asarray(np.exp2(-exponents), np.float32)
    return slopes if count == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]


def _base(count: int) -> float:
    return float(2 ** -(2 ** -(math.log2(count) - 3)))


def _powers(base: float, exponents: NDArray[np.int64]) -> Floats:
    return np.asarray(np.float32(base) ** exponents.astype(np.float32), np.float32)
