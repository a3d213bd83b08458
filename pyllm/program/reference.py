"""What every operation means, in float64 NumPy: the specification that each kernel and device is tested against.

Plain and readable rather than fast. Inputs may be any float type; results are float64. `bfloat16=True` adds the
roundings of bfloat16 models: matrices, the rows that enter a matmul, q, k, v and p are rounded to bfloat16, everything
else keeps its precision. Letters as in ARCHITECTURE.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .program import ActivationName

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_SMALLEST_NORMAL = 2.0**-126


def round_bf16(x: ArrayLike) -> Array:
    """Rounded to the nearest bfloat16, ties to even; denormals become zero. Any shape."""
    single = np.ascontiguousarray(x, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    rounded = np.where(np.isfinite(single), rounded, single)
    flushed = np.where(np.abs(rounded) < _SMALLEST_NORMAL, np.copysign(0.0, rounded), rounded)
    return np.asarray(flushed, np.float64)


def activation(name: ActivationName, x: ArrayLike) -> Array:
    """Elementwise, any shape."""
    x = np.asarray(x, np.float64)
    if name == "none":
        return x
    if name == "relu":
        return np.asarray(np.maximum(x, 0.0))
    if name == "gelu":
        return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))), np.float64)
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))
    if name == "quick_gelu":
        return x * _sigmoid(1.702 * x)
    if name == "silu":
        return x * _sigmoid(x)
    if name == "tanh":
        return np.asarray(np.tanh(x))
    raise ValueError(f"[reference] there is no activation {name!r}")


def softmax(x: ArrayLike) -> Array:
    """Along the last axis."""
    x = np.asarray(x, np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def layer_norm(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, eps: float) -> Array:
    """x [T, D], weight and bias [D]; the variance is that of the population."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * np.asarray(weight, np.float64)
    return np.asarray(y if bias is None else y + np.asarray(bias, np.float64))


def rms_norm(x: ArrayLike, weight: ArrayLike, eps: float) -> Array:
    """x [T, D], weight [D] (Zhang and Sennrich 2019)."""
    x = np.asarray(x, np.float64)
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * np.asarray(weight, np.float64))


def embed(
    ids: ArrayLike,
    table: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    position_table: ArrayLike | None = None,
    position_offset: int = 0,
    scale: float = 1.0,
    types: ArrayLike | None = None,
    type_table: ArrayLike | None = None,
    bfloat16: bool = False,
) -> Array:
    """ids, positions and types [T], table [V, D], position_table [P, D], type_table [segments, D] -> [T, D]."""
    cast = round_bf16 if bfloat16 else _exact
    out = scale * cast(np.asarray(table)[np.asarray(ids)])
    if position_table is not None:
        out = out + cast(np.asarray(position_table)[np.asarray(positions) + position_offset])
    if type_table is not None:
        out = out + cast(np.asarray(type_table)[np.asarray(types)])
    return np.asarray(out)


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    act: ActivationName = "none",
    gated: bool = False,
    residual: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    bfloat16: bool = False,
) -> Array:
    """x [M, K], weight [N, K] -> residual + scale * cap(act(x @ weight.T + bias)), [M, N]; cap(y) = softcap *
    tanh(y / softcap) where softcap > 0.

    gated: the first N/2 outputs are the gate, the others what it multiplies: act(gate) * up, [M, N / 2].
    """
    cast = round_bf16 if bfloat16 else _exact
    y = cast(x) @ cast(weight).T
    if bias is not None:
        y = y + np.asarray(bias, np.float64)
    if gated:
        half = y.shape[-1] // 2
        y = activation(act, y[..., :half]) * y[..., half:]
    else:
        y = activation(act, y)
    y = scale * (softcap * np.tanh(y / softcap) if softcap > 0 else y)
    return np.asarray(y if residual is None else np.asarray(residual, np.float64) + y)


def route(router: ArrayLike, top_k: int, *, normalize: bool) -> Array:
    """router [T, n] -> weights [T, n] of the experts, zero for those not chosen: softmax over all, the top_k largest
    kept (ties: the lower index), divided by their sum when `normalize`."""
    p = softmax(router)
    chosen = np.argsort(-p, axis=-1, kind="stable")[:, :top_k]
    weights = np.zeros_like(p)
    np.put_along_axis(weights, chosen, np.take_along_axis(p, chosen, -1), -1)
    return np.asarray(weights / weights.sum(-1, keepdims=True) if normalize else weights)


def rotary(positions: ArrayLike, inv_freq: ArrayLike, scaling: float = 1.0) -> Array:
    """positions [T], inv_freq [n] -> [T, 2n]: n cosines, then n sines.

    As transformers computes them, the angle is a float32 product: at position 1000 its rounding moves an angle by up
    to 3e-5, which a float64 product would not reproduce. The cosine of that angle is rounded to float32 only.
    """
    angle = np.asarray(positions, np.float32)[:, None] * np.asarray(inv_freq, np.float32)
    wide = angle.astype(np.float64)
    table = np.concatenate([np.cos(wide), np.sin(wide)], axis=1).astype(np.float32) * np.float32(scaling)
    return np.asarray(table, np.float64)


def rope(x: ArrayLike, cos_sin: ArrayLike, *, interleaved: bool = False) -> Array:
    """Rotates the first `rotary_dim` elements of each head: x [T, heads, E], cos_sin [T, rotary_dim].

    Pairs are (i, i + rotary_dim / 2) as Hugging Face has them, or (2i, 2i + 1) when interleaved (Su et al. 2021).
    """
    x, table = np.array(x, np.float64), np.asarray(cos_sin, np.float64)
    half = table.shape[1] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first] = a * cos - b * sin
    x[..., second] = b * cos + a * sin
    return x


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    bias: ArrayLike | None = None,
    bfloat16: bool = False,
) -> Array:
    """One sequence: q [T, H, E] of the last T positions, k and v [C, K, E] of all C -> [T, H, E].

    Query t sits at position C - T + t and sees keys [position - window + 1, position] (window 0: from 0 on), or, not
    causal, those at a distance below `window` on both sides (window 0: all). Query head h uses key/value head
    h // (H / K). bias [H, T, C] is added to the scores. bfloat16: p = exp(s - max) is rounded, its sum is taken
    before rounding.
    """
    p, v = (
        attention_weights(
            q, k, scale=scale, causal=causal, window=window, softcap=softcap, bias=bias, bfloat16=bfloat16
        ),
        np.asarray(v, np.float64),
    )
    cast = round_bf16 if bfloat16 else _exact
    heads, tokens, context = p.shape
    kv_heads, width = v.shape[1:]
    grouped = p.reshape(kv_heads, heads // kv_heads, tokens, context)
    out = np.einsum("kgtc,cke->kgte", cast(grouped), cast(v), optimize=True) / grouped.sum(-1)[..., None]
    return np.asarray(out.transpose(2, 0, 1, 3).reshape(tokens, heads, width))


def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
    *,
    scale: float,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    bias: ArrayLike | None = None,
    bfloat16: bool = False,
) -> Array:
    """exp(score - max) [H, T, C] of `attention`: divided by their sums they are the attention weights."""
    cast = round_bf16 if bfloat16 else _exact
    q, k = cast(q), cast(k)
    tokens, heads, width = q.shape
    context, kv_heads, _ = k.shape
    grouped = q.reshape(tokens, kv_heads, heads // kv_heads, width)
    scores = scale * np.einsum("tkge,cke->kgtc", grouped, k, optimize=True).reshape(heads, tokens, context)
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64)
    position = np.arange(context - tokens, context)[:, None]
    distance = position - np.arange(context)[None, :]
    hidden = np.zeros(distance.shape, bool)
    if causal:
        hidden = distance < 0
    if window:
        hidden = hidden | (np.abs(distance) >= window)
    scores = np.where(hidden, -np.inf, scores)
    return np.asarray(np.exp(scores - scores.max(-1, keepdims=True)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -700.0, None))))  # exp(710) overflows


def _exact(x: Any) -> Array:
    return np.asarray(x, np.float64)
