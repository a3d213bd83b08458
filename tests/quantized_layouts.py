"""Writes toy checkpoints in the layouts of quantised ones, from their public descriptions: word by word, no shortcuts.

Rounding is to the nearest step of a plain min-max grid; how well that quantises is no matter here. Weights [n, k].
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pyllm.checkpoint import open_checkpoint
from pyllm.checkpoint.codes import floats_of
from pyllm.devices.formats import quantizable
from pyllm.models import bind, network_of

Tensors = dict[str, NDArray[Any]]


class Grid(NamedTuple):
    """codes [n, k] from 0, zeros and scales [n, groups]; order [k]: each input's group; weights: what they say."""

    bits: int
    codes: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: NDArray[np.float32]
    order: NDArray[np.int64]
    group: int

    @property
    def weights(self) -> NDArray[np.float32]:
        return ((self.codes - self.zeros[:, self.order]) * self.scales[:, self.order].astype(np.float64)).astype("f4")


def grid(
    w: NDArray[np.float32], bits: int, group: int, *, symmetric: bool = True, order: NDArray[np.int64] | None = None
) -> Grid:
    """Rounds to integers by groups (-1: all inputs), with float16 scales."""
    n, k = w.shape
    group = k if group == -1 else group
    order = np.arange(k) // group if order is None else order
    groups, top = math.ceil(k / group), 2**bits - 1
    scales, zeros = np.zeros((n, groups), np.float32), np.zeros((n, groups), np.int64)
    codes = np.zeros((n, k), np.int64)
    for g in range(groups):
        part = w[:, order == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high * (top + 1) / (top - 1)
        scales[:, g] = np.maximum((high - low) / top, 2.0**-14).astype(np.float16)
        zeros[:, g] = (top + 1) // 2 if symmetric else np.clip(np.rint(-low / scales[:, g]), 0, top)
        codes[:, order == g] = np.clip(np.rint(part / scales[:, g, None]) + zeros[:, g, None], 0, top)
    return Grid(bits, codes, zeros, scales, order, group)


def words(values: NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """[r, c] -> int32 [r, ceil(c * bits / 32)]: along the rows, low bits first; position p of a word is value
    order[p]."""
    per = 32 // bits
    padded = np.zeros((values.shape[0], math.ceil(values.shape[1] / per) * per), np.uint32)
    padded[:, : values.shape[1]] = values
    out = np.zeros((values.shape[0], padded.shape[1] // per), np.uint32)
    for word in range(out.shape[1]):
        for place in range(per):
            out[:, word] |= padded[:, word * per + (order[place] if order else place)] << np.uint32(bits * place)
    return out.view(np.int32)


def gptq(name: str, q: Grid, *, v2: bool = False, g_idx: bool = True) -> Tensors:
    stored = q.zeros if v2 else (q.zeros - 1) % 2**q.bits
    parts = {
        "qweight": np.ascontiguousarray(words(q.codes, q.bits).T),
        "qzeros": words(np.ascontiguousarray(stored.T), q.bits),
        "scales": np.ascontiguousarray(q.scales.T.astype(np.float16)),
    }
    if g_idx:
        parts["g_idx"] = q.order.astype(np.int32)
    return {f"{name}.{role}": array for role, array in parts.items()}


def awq_gemm(name: str, q: Grid) -> Tensors:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{name}.qweight": words(np.ascontiguousarray(q.codes.T), 4, order),
        f"{name}.qzeros": words(np.ascontiguousarray(q.zeros.T), 4, order),
        f"{name}.scales": np.ascontiguousarray(q.scales.T.astype(np.float16)),
    }


def awq_gemv(name: str, q: Grid) -> Tensors:
    n, groups = q.scales.shape
    width = math.ceil(groups / 8) + 1  # wider than need be
    zeros, scales = np.zeros((n, 8 * width), np.int64), np.zeros((n, 8 * width), np.float16)
    zeros[:, :groups], scales[:, :groups] = q.zeros, q.scales
    return {f"{name}.qweight": words(q.codes, 4), f"{name}.qzeros": words(zeros, 4), f"{name}.scales": scales}


def pack_quantized(name: str, q: Grid) -> Tensors:
    """The stored integers are signed; a word holds them plus the middle, so it holds q.codes."""
    parts: Tensors = {
        "weight_packed": words(q.codes, q.bits),
        "weight_scale": q.scales,
        "weight_shape": np.array(q.codes.shape, np.int64),
    }
    if (q.zeros != 2 ** (q.bits - 1)).any():
        parts["weight_zero_point"] = np.ascontiguousarray(words(np.ascontiguousarray(q.zeros.T), q.bits).T)
    if (q.order != np.arange(len(q.order)) // q.group).any():
        parts["weight_g_idx"] = q.order.astype(np.int32)
    return {f"{name}.{role}": array for role, array in parts.items()}


def int_quantized(name: str, q: Grid) -> Tensors:
    parts: Tensors = {"weight": (q.codes - 128).astype(np.int8), "weight_scale": q.scales}
    if (q.zeros != 128).any():
        parts["weight_zero_point"] = (q.zeros - 128).astype(np.int8)
    return {f"{name}.{role}": array for role, array in parts.items()}


def bnb_int8(name: str, w: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
    largest = np.abs(w).max(1)
    codes = np.rint(w * (127 / largest[:, None])).astype(np.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    weights = codes.astype(np.float64) * largest[:, None] / 127
    return {f"{name}.{role}": array for role, array in parts.items()}, weights.astype(np.float32)


NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)  # fmt: skip


def bnb_nf4(name: str, w: NDArray[np.float32], block: int = 64) -> tuple[Tensors, NDArray[np.float32]]:
    flat = np.zeros(math.ceil(w.size / block) * block, np.float32)
    flat[: w.size] = w.ravel()
    blocks = flat.reshape(-1, block)
    largest = np.abs(blocks).max(1)
    codes = np.abs(blocks[..., None] / np.maximum(largest, 1e-9)[:, None, None] - NF4).argmin(-1).ravel()[: w.size]
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(w.shape)}
    codes = np.append(codes, 0)[: w.size + w.size % 2]
    parts: Tensors = {
        "weight": (codes[0::2] * 16 + codes[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": NF4,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    weights = NF4[codes[: w.size]].astype(np.float64) * np.repeat(largest, block)[: w.size]
    return {f"{name}.{role}": a for role, a in parts.items()}, weights.astype(np.float32).reshape(w.shape)


def compressed_config(form: str, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    strategy = "channel" if group == -1 else "group"
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": False}
    weights |= {"group_size": None if group == -1 else group}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
    }


Layout = Callable[[str, NDArray[np.float32]], tuple[Tensors, NDArray[np.float32]]]


def of_grid(layout: Callable[..., Tensors], *grid_args: Any, **more: Any) -> Layout:
    """A layout of integers: min-max rounding, then that layout."""
    options = {name: more.pop(name) for name in ("symmetric",) if name in more}
    shuffled = more.pop("shuffled", False)

    def quantized(name: str, w: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
        order = None
        if shuffled:
            group = grid_args[1]
            order = np.random.RandomState(w.shape[1]).permutation(np.arange(w.shape[1]) // group)
        q = grid(w, *grid_args, order=order, **options)
        return layout(name, q, **more), q.weights

    return quantized


def matrices_of(folder: Path) -> dict[str, bool]:
    """Stored names of the weights that linear layers and experts multiply by, and whether they are [k, n]."""
    with open_checkpoint(folder) as checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        sources = [source for matrix in quantizable(network) for source in matrix.sources]
        stored = {source: bound.stored_name(source.name) for source in sources if source.name in bound.names()}
    table = re.compile(r".*(embed|wte|shared|lm_head|decoder\.weight|experts\.(gate_up|down)_proj).*")
    return {name: source.transposed for source, name in stored.items() if not table.fullmatch(name)}


def write_quantized(
    source: Path, target: Path, layout: Layout, config: dict[str, Any] | None, *, multiple: int = 1
) -> tuple[Path, Path]:
    """A copy of a checkpoint with its linear layers in `layout`, where outputs and inputs are multiples of `multiple`;
    and, for comparison, a copy whose weights are what the quantised ones say. Returns both folders."""
    plain, chosen = target / "plain", matrices_of(source)
    quantized = target / "quantized"
    with open_checkpoint(source) as checkpoint:
        tensors = {name: floats_of(checkpoint.tensor(name)) for name in checkpoint.names()}
    packed: Tensors = {}
    count = 0
    for name, array in tensors.items():
        if name not in chosen or any(length % multiple for length in array.shape):
            packed[name] = array.astype(np.float16)
            tensors[name] = packed[name].astype(np.float32)
            continue
        turned = chosen[name]
        parts, weights = layout(name.removesuffix(".weight"), np.ascontiguousarray(array.T if turned else array))
        packed |= parts
        tensors[name] = np.ascontiguousarray(weights.T if turned else weights)
        count += 1
    assert count
    for folder, content, quantization in ((plain, tensors, None), (quantized, packed, config)):
        folder.mkdir(parents=True)
        settings = json.loads((source / "config.json").read_text())
        if quantization is not None:
            settings["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(settings))
        if (source / "generation_config.json").exists():
            shutil.copy(source / "generation_config.json", folder)
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    return plain, quantized
