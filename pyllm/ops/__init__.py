"""Every kernel as a function on NumPy arrays: what a model runs, one operation at a time.

Arrays go in as anything NumPy can turn into float32 and come out as fresh C-contiguous float32. The meaning of each
operation is its float64 definition in pyllm.program.reference. Common arguments:

    dtype        "float32", or "bfloat16": weights (keys, values) and inputs are rounded to bfloat16, sums are float32;
                 "float16": weights (keys, values) are rounded to float16, inputs stay float32. Keys and values also
                 "int8". Weights also "int8" (one scale an output), "int4" and "int4-g128" (one for each 32 or 128
                 inputs), with inputs as 16-bit integers, and "int8-fast", with 8-bit inputs; scales are chosen by the
                 squared error they leave (csrc/cpu/quantise.h)
    isa          "scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"; None: the best one here,
                 or the one PYLLM_ISA names
    num_threads  None: PYLLM_NUM_THREADS, OMP_NUM_THREADS, or the cores this process may use

Raises ArrayError (shapes, dtypes, weights that the dtype cannot hold), InvalidOptionError (names, thread counts) and
DeviceError (isa).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _C
from .._C import PackedMatrix
from ..errors import ArrayError
from ..program.program import ActivationName

__all__ = [
    "PackedMatrix",
    "activate",
    "attention",
    "embedding",
    "gate",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "matmul",
    "pack",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rope",
    "silu",
    "silu_gate",
    "softmax",
]

Floats = NDArray[np.float32]


def pack(
    w: ArrayLike | Sequence[NDArray[Any]],
    bias: ArrayLike | Sequence[NDArray[Any]] | None = None,
    *,
    gated: bool = False,
    dtype: str = "float32",
    isa: str | None = None,
    num_threads: int | None = None,
) -> PackedMatrix:
    """Weights [N, K] (and bias [N]) in the form matmul reads: panels of 64 outputs (csrc/kernels.h).

    w: float32, float16, or bfloat16 as uint16, any strides; a list or tuple of matrices is joined along N. gated: the
    first N/2 rows are the gate, the others what it multiplies (two equal matrices when given as a list).
    """
    parts = _parts(w, gated, 2)
    biases = [] if bias is None else [_floats(part) for part in _parts(bias, gated, 1)]
    return _C.pack([_stored(part) for part in parts], biases, gated, dtype, True, isa, num_threads)


def matmul(
    x: ArrayLike,
    w: ArrayLike | PackedMatrix,
    bias: ArrayLike | None = None,
    activation: ActivationName = "none",
    residual: ArrayLike | None = None,
    gated: bool = False,
    dtype: str = "float32",
    isa: str | None = None,
    num_threads: int | None = None,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Floats:
    """residual + scale * activation(x @ w.T + bias) [M, N], from x [M, K], w [N, K], bias [N], residual [M, N].

    gated: activation(gate) * up with w = [gate; up]; the result is [M, N/2]. softcap > 0, not gated: what the
    activation gives becomes softcap * tanh(it / softcap). A PackedMatrix brings its own bias,
    gating and dtype. One multiply-add chain per output over K ascending (float32), or TDPBF16PS order (bfloat16).
    """
    if not isinstance(w, PackedMatrix):
        w = pack(w, bias, gated=gated, dtype=dtype, isa=isa, num_threads=num_threads)
    elif bias is not None or gated:
        raise ArrayError("[matmul] a packed matrix has its own bias and gating, got more; give them to pack()")
    added = None if residual is None else _floats(residual)
    return _C.matmul(_floats(x), w, activation, added, scale, softcap, isa, num_threads)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    causal: bool = True,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    dtype: str = "float32",
    isa: str | None = None,
    num_threads: int | None = None,
    *,
    bias: ArrayLike | None = None,
) -> Floats:
    """softmax(scale * q @ k.T + bias) @ v for one sequence: q [T, H, E], k and v [C, K, E] -> [T, H, E].

    The queries sit at the last T of the C positions. Query head h uses key/value head h // (H / K). scale None:
    E ** -0.5. causal: a query sees no key after it. window w > 0: nor one at a distance of w or more, on either side.
    softcap > 0: scores become softcap * tanh(scores / softcap), before bias [H, T, C] is added. dtype: what keys and
    values are stored as, "float32", "bfloat16", "float16" or "int8" (one scale a token and head).
    """
    query = _floats(q)
    if scale is None:
        scale = 1.0 if query.ndim == 0 or query.shape[-1] == 0 else query.shape[-1] ** -0.5
    added = None if bias is None else _floats(bias)
    options = (causal, scale, window, softcap, added, dtype, isa, num_threads)
    return _C.attention(query, _floats(k), _floats(v), *options)


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    isa: str | None = None,
    num_threads: int | None = None,
) -> Floats:
    """(x - mean) / sqrt(variance + eps) * weight (+ bias) over the last axis; x [..., D], weight and bias [D]."""
    added = None if bias is None else _floats(bias)
    rows, shape = _rows(x)
    return _C.norm(rows, _floats(weight), added, eps, False, isa, num_threads).reshape(shape)


def rms_norm(
    x: ArrayLike, weight: ArrayLike, eps: float = 1e-6, isa: str | None = None, num_threads: int | None = None
) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [..., D], weight [D] (Zhang and Sennrich 2019)."""
    rows, shape = _rows(x)
    return _C.norm(rows, _floats(weight), None, eps, True, isa, num_threads).reshape(shape)


def rope(
    x: ArrayLike,
    positions: ArrayLike,
    inv_freq: ArrayLike,
    *,
    scaling: float = 1.0,
    interleaved: bool = False,
    isa: str | None = None,
    num_threads: int | None = None,
) -> Floats:
    """Rotates the first 2 * len(inv_freq) elements of each head by position * inv_freq; x [T, H, E], positions [T].

    Pairs are (i, i + len(inv_freq)) as in Hugging Face's Llama, or (2i, 2i + 1) when interleaved (Su et al. 2021).
    """
    where, frequencies = np.asarray(positions, np.float32), np.asarray(inv_freq, np.float32)
    if where.ndim != 1 or frequencies.ndim != 1:
        raise ArrayError(
            f"[rope] positions and inv_freq must be lists of numbers, got shapes {list(where.shape)} and "
            f"{list(frequencies.shape)}; reshape them"
        )
    angles = where[:, None] * frequencies[None, :]
    wide = angles.astype(np.float64)
    table = np.concatenate([np.cos(wide), np.sin(wide)], axis=1).astype(np.float32) * np.float32(scaling)
    return _C.rope(_floats(x), table, interleaved, isa, num_threads)


def activate(
    x: ArrayLike, activation: ActivationName, isa: str | None = None, num_threads: int | None = None
) -> Floats:
    """Any activation by name, elementwise; x of any shape."""
    rows, shape = _rows(x)
    return _C.activate(rows, activation, isa, num_threads).reshape(shape)


def gelu(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    return activate(x, "gelu", isa, num_threads)


def gelu_tanh(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), Hugging Face's gelu_new."""
    return activate(x, "gelu_tanh", isa, num_threads)


def quick_gelu(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """x * sigmoid(1.702 x)."""
    return activate(x, "quick_gelu", isa, num_threads)


def silu(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """x * sigmoid(x)."""
    return activate(x, "silu", isa, num_threads)


def relu(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """max(x, 0)."""
    return activate(x, "relu", isa, num_threads)


def gate(
    g: ArrayLike, up: ArrayLike, activation: ActivationName, isa: str | None = None, num_threads: int | None = None
) -> Floats:
    """activation(g) * up, elementwise; both of one shape."""
    rows, shape = _rows(g)
    return _C.gate(rows, _rows(up)[0], activation, isa, num_threads).reshape(shape)


def silu_gate(g: ArrayLike, up: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """silu(g) * up, elementwise; both of one shape."""
    return gate(g, up, "silu", isa, num_threads)


def softmax(x: ArrayLike, isa: str | None = None, num_threads: int | None = None) -> Floats:
    """exp(x - max) / sum over the last axis; x [..., n]."""
    rows, shape = _rows(x)
    return _C.softmax(rows, isa, num_threads).reshape(shape)


def embedding(
    ids: ArrayLike,
    table: ArrayLike | PackedMatrix,
    scale: float = 1.0,
    dtype: str = "float32",
    num_threads: int | None = None,
) -> Floats:
    """scale * table[ids]: ids [T], table [V, D] (or packed, as a tied head is) -> [T, D]."""
    if not isinstance(table, PackedMatrix):
        table = _C.pack([_stored(table)], [], False, dtype, False, None, num_threads)
    rows = np.asarray(ids)
    if rows.dtype.kind not in "iu" or rows.ndim != 1 or np.any(rows != rows.astype(np.int32)):
        raise ArrayError(
            f"[embedding] ids must be 32-bit integers [T], got {rows.dtype} {list(rows.shape)}; convert them"
        )
    return _C.embedding(np.ascontiguousarray(rows, np.int32), table, scale, num_threads)


def _floats(x: ArrayLike) -> Floats:
    return np.ascontiguousarray(x, np.float32)


def _rows(x: ArrayLike) -> tuple[Floats, tuple[int, ...]]:
    """x as [rows, n], and the shape to give back."""
    array = np.asarray(x, np.float32)
    width = array.shape[-1] if array.ndim else 1
    return np.ascontiguousarray(array.reshape(array.size // width if width else 0, width)), array.shape


def _stored(w: ArrayLike) -> NDArray[Any]:
    """float32, float16 and bfloat16 bits as they are, anything else as float32."""
    array = np.asarray(w)
    return array if array.dtype in (np.float32, np.float16, np.uint16) else array.astype(np.float32)


def _parts(w: Any, gated: bool, ndim: int) -> list[NDArray[Any]]:
    """A list of arrays as it is; one array whole, or in halves when gated."""
    if isinstance(w, (list, tuple)) and w and isinstance(w[0], np.ndarray) and w[0].ndim == ndim:
        return list(w)
    array = np.asarray(w)
    if not gated:
        return [array]
    if array.ndim != ndim or len(array) % 2:
        raise ArrayError(
            f"[pack] a gated weight or bias has an even number of rows, got {list(array.shape)}; pass [gate; up]"
        )
    return [array[: len(array) // 2], array[len(array) // 2 :]]
