"""Rotary frequencies of Hugging Face's `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

Formulas and their float32 order follow transformers' modeling_rope_utils: tables agree to the last bit, or nearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fields import LARGEST, Fields, is_number

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")
DEFAULT_THETA = 10000.0
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
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

    max_positions: how far the method carries (0: as far as max_position_embeddings says).
    """

    inv_freq: tuple[float, ...]
    scaling: float = 1.0
    max_positions: int = 0


def rope_from_fields(fields: Fields, head_dim: int, max_position_embeddings: int) -> RopeParameters:
    """Notes what is wrong or unsupported in `fields`, and then returns something empty."""
    parameters = _parameters(fields)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if any(isinstance(value, dict) for value in parameters.values()):
        fields.unsupported("rope_parameters that differ by layer")
    elif kind not in SUPPORTED:
        fields.unsupported(f"rope_type {kind!r} (supported: {', '.join(SUPPORTED)})")
    elif _check(fields, kind, parameters) and head_dim and max_position_embeddings:
        return _rope(kind, parameters, head_dim, max_position_embeddings)
    return RopeParameters(())


def _parameters(fields: Fields) -> dict[str, Any]:
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
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        outer = fields.raw(name)
        if outer is None:
            continue
        if name in found and found[name] != outer:
            fields.invalid(f"{name} must be given once, it is {outer!r} and, in the rope parameters, {found[name]!r}")
        found[name] = outer
    return found


def _check(fields: Fields, kind: str, parameters: dict[str, Any]) -> bool:
    """Whether all fields that `kind` uses are there and in range; notes those that are not."""
    problems = [f"rope_type {kind!r} needs {name}" for name in _REQUIRED[kind] if name not in parameters]
    wrong = [name for name in _NUMBERS if name in parameters and not is_number(parameters[name], *_RANGE)]
    problems += [
        f"{name} must be a number from {_RANGE[0]} to {_RANGE[1]:g}, got {parameters[name]!r}" for name in wrong
    ]
    if not problems and kind == "llama3" and parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        problems.append(f"low_freq_factor must be less than high_freq_factor, got {low} and {high}")
    if not problems and parameters.get("rope_theta", DEFAULT_THETA) <= 1:
        problems.append(f"rope_theta must be a number > 1, got {parameters['rope_theta']!r}")
    if "truncate" in parameters and not isinstance(parameters["truncate"], bool):
        problems.append(f"truncate must be true or false, got {parameters['truncate']!r}")
    for problem in problems:
        fields.invalid(problem)
    if not problems and parameters.get("partial_rotary_factor", 1) != 1:
        fields.unsupported("partial_rotary_factor other than 1")
    return not problems


def _rope(kind: str, parameters: dict[str, Any], head_dim: int, max_position_embeddings: int) -> RopeParameters:
    theta = float(parameters.get("rope_theta", DEFAULT_THETA))
    powers = _powers(theta, head_dim)
    plain: Floats = np.divide(1, powers, dtype=np.float32)
    if kind == "linear":
        return RopeParameters(_listed(plain / np.float32(parameters["factor"])))
    if kind == "llama3":
        return RopeParameters(_listed(_llama3(plain, parameters)))
    if kind == "yarn":
        original = parameters.get("original_max_position_embeddings", max_position_embeddings)
        inv_freq, scaling = _yarn(powers, theta, head_dim, original, parameters)
        return RopeParameters(_listed(inv_freq), scaling, min(int(parameters["factor"] * original), LARGEST))
    # "dynamic" changes nothing up to max_position_embeddings, where the program ends.
    return RopeParameters(_listed(plain))


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


def _listed(inv_freq: Floats) -> tuple[float, ...]:
    return tuple(float(f) for f in inv_freq)
