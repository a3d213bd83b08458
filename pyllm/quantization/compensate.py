"""Rounding weights one input at a time so that later ones make up for the errors of earlier ones (GPTQ).

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1:
with H = X^T X over calibration inputs, column i is rounded and its error, divided by the diagonal of the upper Cholesky
factor of H^-1, is taken from the columns to the right in proportion to that factor's row i.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _C
from .folder import GROUPS

Codes = NDArray[np.int8] | NDArray[np.uint8]

BLOCK = 128  # columns whose corrections are applied together to all later ones
DAMPING = 0.01  # of the mean of H's diagonal, added to it: keeps H invertible (the paper's 1 %)


def compensated(
    weights: NDArray[np.float32], moments: NDArray[np.float64], dtype: str
) -> tuple[Codes, NDArray[np.float32]]:
    """Codes and scales of `weights` [n, k] as _C.quantize gives them, chosen for inputs with second moments [k, k].

    Scales of a group are those that _C.quantize picks for its columns as they are once earlier errors are made up for.
    Inputs that were always zero take no part.
    """
    outputs, inputs = weights.shape
    group = GROUPS[dtype] or inputs
    factor = _factor(moments)
    left = weights.astype(np.float64)
    codes = np.empty((outputs, inputs), np.int8 if dtype == "int8" else np.uint8)
    scales = np.empty((outputs, -(-inputs // group)), np.float32)
    for begin in range(0, inputs, BLOCK):
        end = min(begin + BLOCK, inputs)
        errors = np.empty((outputs, end - begin))
        for i in range(begin, end):
            if i % group == 0:
                scales[:, i // group] = _C.quantize(left[:, i : i + group].astype(np.float32), dtype)[1][:, 0]
            scale = scales[:, i // group]
            codes[:, i], value = _rounded(left[:, i], scale, dtype)
            errors[:, i - begin] = (left[:, i] - value) / factor[i, i]
            left[:, i + 1 : end] -= np.outer(errors[:, i - begin], factor[i, i + 1 : end])
        left[:, end:] -= errors @ factor[begin:end, end:]
    return codes, scales


def _factor(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper Cholesky factor of the inverse, of moments made definite."""
    damped = moments.copy()
    diagonal = np.einsum("ii->i", damped)
    unused = diagonal == 0
    damped[unused, :] = damped[:, unused] = 0
    diagonal[unused] = 1
    diagonal += DAMPING * diagonal.mean()
    factor: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor


def _rounded(column: NDArray[np.float64], scale: NDArray[np.float32], dtype: str) -> tuple[Codes, NDArray[np.float64]]:
    """Codes of one column, and what they stand for."""
    steps = np.divide(column, scale, out=np.zeros_like(column), where=scale != 0)
    if dtype == "int8":
        rounded = np.clip(np.rint(steps), -127, 127)
        return rounded.astype(np.int8), rounded * scale
    rounded = np.clip(np.rint(steps), -8, 7)
    return (rounded + 8).astype(np.uint8), rounded * scale
