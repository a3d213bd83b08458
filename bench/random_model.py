"""Writes GPT-2-shaped checkpoints with random float32 weights, for benchmarks. Needs NumPy only."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def write_gpt2(
    folder: Path, *, layers: int = 12, width: int = 768, heads: int = 12, vocab: int = 50257, positions: int = 1024
) -> None:
    """config.json and model.safetensors of a GPT2LMHeadModel with a tied head; the defaults are GPT-2's 124 M."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    config |= {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": positions, "vocab_size": vocab}
    config |= {"layer_norm_epsilon": 1e-5, "bos_token_id": vocab - 1, "eos_token_id": vocab - 1}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = _shapes(layers, width, vocab, positions)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                values += np.float32(1)
            file.write(values.tobytes())


def _shapes(layers: int, width: int, vocab: int, positions: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, width), "wpe.weight": (positions, width)}
    for layer in range(layers):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{h}{norm}.weight": (width,), f"{h}{norm}.bias": (width,)}
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{h}{name}.weight": (inputs, outputs), f"{h}{name}.bias": (outputs,)}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}
