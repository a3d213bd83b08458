"""Rotary frequencies of Hugging Face's `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

Formulas and their float32 order follow transformers' modeling_rope_utils: tables agree to the last bit, or nearly.
Two methods choose frequencies by the length of the sequence ("dynamic", "longrope"), so that the first tokens of a
long text would not be computed as those of a short one. Here such a model carries as far as its first frequencies do:
to max_position_embeddings (dynamic), to original_max_position_embeddings with the short factors (longrope).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fields import LARGEST, Fields, is_number

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
DEFAULT_THETA = 10000.0
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_NUMBERS = (
    *("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor"),
)
_RANGE = (0.001, 1e12)  # beyond any use, and products of two stay within float32

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one model: cos and sin of position * inv_freq, times `scaling`.

    inv_freq has half as many elements as are rotated of a head. max_positions: how far the model carries.
    """

    inv_freq: tuple[float, ...]
    scaling: float = 1.0
    max_positions: int = 0


def rope_from_fields(
    fields: Fields,
    head_dim: int,
    max_position_embeddings: int,
    *,
    theta: float = DEFAULT_THETA,
    partial: float | None = None,
) -> RopeParameters:
    """The one rotary embedding of a model. Notes in `fields` what is wrong or unsupported, and then is empty.

    theta: what a missing rope_theta means in this family. partial: what a missing partial_rotary_factor means in a
    family that may rotate a part of each head; None: it always rotates the whole.
    """
    parameters = {"rope_theta": theta} | ({} if partial is None else {"partial_rotary_factor": partial})
    parameters |= _parameters(fields)
    if any(isinstance(value, dict) for value in parameters.values()):
        fields.unsupported("rope_parameters that differ by layer")
        return RopeParameters(())
    return _checked_rope(fields, parameters, head_dim, max_position_embeddings, partial is not None)


def ropes_by_layer_type(
    fields: Fields, head_dim: int, max_position_embeddings: int, thetas: Mapping[str, tuple[str, float]]
) -> dict[str, RopeParameters]:
    """One rotary embedding for "full_attention" and one for "sliding_attention", by name.

    transformers 5 writes rope_parameters with an object for each. Before, rope_scaling was that of full attention, and
    thetas were fields of their own: `thetas` has for each layer type that field's name and what it means when missing.
    """
    found = {}
    parameters = _parameters(fields, ("partial_rotary_factor", "original_max_position_embeddings"))
    nested = any(isinstance(parameters.get(kind), dict) for kind in thetas)
    for kind, (name, theta) in thetas.items():
        own = parameters.get(kind, {}) if nested else parameters if kind == "full_attention" else {}
        if not isinstance(own, dict):
            fields.invalid(f"rope_parameters must hold an object for {kind}, got {own!r}")
            own = {}
        outer = fields.raw(name)
        own = {"rope_theta": theta if outer is None else outer} | {k: v for k, v in own.items() if v is not None}
        found[kind] = _checked_rope(fields, own, head_dim, max_position_embeddings, False)
    return found


def _checked_rope(
    fields: Fields, parameters: dict[str, Any], head_dim: int, max_position_embeddings: int, may_be_partial: bool
) -> RopeParameters:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("su", "yarn") and "short_factor" in parameters:  # as the first Phi-3 checkpoints called it
        kind = "longrope"
    if kind not in SUPPORTED:
        fields.unsupported(f"rope_type {kind!r} (supported: {', '.join(SUPPORTED)})")
    elif _check(fields, kind, parameters, head_dim, may_be_partial) and head_dim and max_position_embeddings:
        return _rope(kind, parameters, _rotated(head_dim, parameters), max_position_embeddings)
    return RopeParameters(())


def _rotated(head_dim: int, parameters: dict[str, Any]) -> int:
    """How many elements of a head are rotated."""
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def _parameters(
    fields: Fields,
    outside: Sequence[str] = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
) -> dict[str, Any]:
    """One dict from both styles of config.json; notes contradictions between them."""
    styles = {name: fields.raw(name) for name in ("rope_parameters", "rope_scaling")}
    for name, value in styles.items():
        if value is not None and not isinstance(value, dict):
            fields.invalid(f"{name} must be an object, got {value!r}")
            styles[name] = None
    new, old = styles.values()
    if new and old and new != old:
        fields.invalid("rope_parameters and rope_scaling must agree, they differ")
    found = {key: value for key, value in (new or old or {}).items() if value is not None}
    for name in outside:
        outer = fields.raw(name)
        if outer is None:
            continue
        if name in found and found[name] != outer:
            fields.invalid(f"{name} must be given once, it is {outer!r} and, in the rope parameters, {found[name]!r}")
        found[name] = outer
    return found


def _check(fields: Fields, kind: str, parameters: dict[str, Any], head_dim: int, may_be_partial: bool) -> bool:
    """Whether all fields that `kind` uses are there and in range; notes those that are not."""
    problems = [f"rope_type {kind!r} needs {name}" for name in _REQUIRED[kind] if name not in parameters]
    wrong = [name for name in _NUMBERS if name in parameters and not is_number(parameters[name], *_RANGE)]
    problems += [
        f"{name} must be a number from {_RANGE[0]} to {_RANGE[1]:g}, got {parameters[name]!r}" for name in wrong
    ]
    if not problems and kind == "llama3" and parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        problems.append(f"low_freq_factor must be less than high_freq_factor, got {low} and {high}")
    if not problems and parameters["rope_theta"] <= 1:
        problems.append(f"rope_theta must be a number > 1, got {parameters['rope_theta']!r}")
    if "truncate" in parameters and not isinstance(parameters["truncate"], bool):
        problems.append(f"truncate must be true or false, got {parameters['truncate']!r}")
    if not problems and may_be_partial and head_dim:
        problems += _check_part(parameters, head_dim)
    if not problems and kind == "longrope" and head_dim:
        problems += _check_factors(parameters, _rotated(head_dim, parameters) // 2)
    for problem in problems:
        fields.invalid(problem)
    if not problems and not may_be_partial and parameters.get("partial_rotary_factor", 1) != 1:
        fields.unsupported("partial_rotary_factor other than 1")
        return False
    return not problems


def _check_part(parameters: dict[str, Any], head_dim: int) -> list[str]:
    factor, rotated = parameters["partial_rotary_factor"], _rotated(head_dim, parameters)
    if 0 < rotated <= head_dim and rotated % 2 == 0:
        return []
    return [
        f"partial_rotary_factor must rotate 2, 4, ... or {head_dim} elements of a head, {factor!r} of it is {rotated}"
    ]


def _check_factors(parameters: dict[str, Any], count: int) -> list[str]:
    """Problems of longrope's two lists."""
    problems = []
    for name in ("short_factor", "long_factor"):
        factors = parameters[name]
        if not isinstance(factors, list) or not all(is_number(factor, *_RANGE) for factor in factors):
            problems.append(f"{name} must be a list of numbers from {_RANGE[0]} to {_RANGE[1]:g}, got {factors!r:.80}")
        elif len(factors) != count:
            problems.append(f"{name} must have {count} numbers, one for each pair of elements, got {len(factors)}")
    original = parameters["original_max_position_embeddings"]
    if original < 2:
        problems.append(f"original_max_position_embeddings must be at least 2, got {original!r}")
    return problems


def _rope(kind: str, parameters: dict[str, Any], rotated: int, max_position_embeddings: int) -> RopeParameters:
    theta = float(parameters["rope_theta"])
    powers = _powers(theta, rotated)
    inv_freq: Floats = np.divide(1, powers, dtype=np.float32)  # "default" and, as far as it goes here, "dynamic"
    scaling, positions = 1.0, max_position_embeddings
    original = parameters.get("original_max_position_embeddings", max_position_embeddings)
    if kind == "linear":
        inv_freq = inv_freq / np.float32(parameters["factor"])
    elif kind == "llama3":
        inv_freq = _llama3(inv_freq, parameters)
    elif kind == "yarn":
        inv_freq, scaling = _yarn(powers, theta, rotated, original, parameters)
        positions = max(positions, min(int(parameters["factor"] * original), LARGEST))
    elif kind == "longrope":
        inv_freq = np.float32(1) / (np.asarray(parameters["short_factor"], np.float32) * powers)
        scaling = _longrope_scaling(original, positions, parameters)
        positions = min(positions, int(original))
    return RopeParameters(tuple(float(f) for f in inv_freq), scaling, positions)


def _powers(theta: float, head_dim: int) -> Floats:
    """theta ** (2i / head_dim), float32 [head_dim / 2]; the power of the float32 exponent is taken in float64."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.asarray(theta ** exponents.astype(np.float64), np.float32)


def _llama3(inv_freq: Floats, parameters: dict[str, Any]) -> Floats:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high = (np.float32(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = np.float32(parameters["original_max_position_embeddings"])
    wavelength = np.float32(2 * math.pi) / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    stretched = np.where(wavelength > original / low, inv_freq / factor, between)
    return np.asarray(np.where(wavelength < original / high, inv_freq, stretched), np.float32)


def _yarn(
    powers: Floats, theta: float, head_dim: int, original: float, parameters: dict[str, Any]
) -> tuple[Floats, float]:
    """Frequencies [head_dim / 2] and the scaling of cos and sin (Peng et al. 2023, sections 3.2 to 3.4)."""
    factor = parameters["factor"]

    def dimension(rotations: float) -> float:
        return (head_dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = dimension(parameters.get("beta_fast", 32)), dimension(parameters.get("beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = 1 - ramp
    inv_freq = (1 / (np.float32(factor) * powers)) * (1 - keep) + (1 / powers) * keep
    return np.asarray(inv_freq, np.float32), _yarn_scaling(factor, parameters)


def _yarn_scaling(factor: float, parameters: dict[str, Any]) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    if "mscale" in parameters and "mscale_all_dim" in parameters:
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


def _longrope_scaling(original: float, positions: int, parameters: dict[str, Any]) -> float:
    """Of cos and sin (Ding et al. 2024)."""
    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    factor = parameters.get("factor", positions / original)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
