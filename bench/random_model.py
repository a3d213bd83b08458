"""Writes checkpoints with random weights for any config.json that pyllm runs, for benchmarks. Needs NumPy only."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.models import build_network

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def write_gpt2(folder: Path) -> None:
    """GPT-2's 124 M parameters, float32."""
    write_random(folder, GPT2)


def write_random(folder: Path, config: Mapping[str, Any], dtype: str = "F32") -> None:
    """config.json and model.safetensors: matrices with a deviation of 0.02, norms' weights about 1. dtype "F32" or
    "BF16"."""
    (folder / "config.json").write_text(json.dumps(config))
    programs = build_network(config).programs.values()
    shapes = {source.name: source.shape for program in programs for source in program.sources()}
    norms = {v.source.name for program in programs for v in program.vectors() if v.source.name.endswith("weight")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = (4 if dtype == "F32" else 2) * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            if name in norms:
                values += np.float32(1)
            file.write(
                values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            )
