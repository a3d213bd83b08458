"""Computed tables of positions: sines in the first half of the columns, cosines in the second."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def interleaved(count: int, width: int) -> NDArray[np.float32]:
    """Vaswani et al. 2017, section 3.5, in float64 as transformers' Marian and Pegasus do, sines before cosines."""
    columns = np.arange(width)
    angles = np.arange(count)[:, None] / np.power(10000, 2 * (columns // 2) / width)
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)


def tensor2tensor(first: int, count: int, width: int) -> NDArray[np.float32]:
    """fairseq's table (M2M100), positions first .. first + count - 1; angles are float32 products, as transformers'."""
    half = width // 2
    step = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / (half - 1))
    frequencies = np.exp(step.astype(np.float64)).astype(np.float32)
    angles = np.arange(first, first + count, dtype=np.float32)[:, None] * frequencies
    wide = angles.astype(np.float64)
    parts = [np.sin(wide), np.cos(wide), np.zeros((count, width % 2))]
    return np.concatenate(parts, axis=1).astype(np.float32)
