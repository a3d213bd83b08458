"""Converts aren-transliteration-ct2 (CTranslate2's model.bin) into a Hugging Face folder: a real encoder-decoder.

Blenderbot is the family that says it all: norms before the blocks and one at the end, a position table without offset,
scaled embeddings, a bias of the logits; tie_word_embeddings false gives sources, targets and the head tables of their
own. Both vocabularies become one, in which each table has rows of zeros for the other's tokens and the bias rules them
out as targets.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BLANK, START, END = 0, 1, 2
POSITIONS = 64
RULED_OUT = -1e9

Tensors = dict[str, np.ndarray]


def convert(source: Path, folder: Path) -> list[str]:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.json; returns the joint vocabulary."""
    weights = read_weights(source / "model.bin")
    sources, targets = (read_words(source / f"{side}_vocabulary.txt") for side in ("source", "target"))
    words = list(dict.fromkeys(sources + targets))
    ids = [[words.index(word) for word in side] for side in (sources, targets)]
    tensors = {**layers(weights, "encoder"), **layers(weights, "decoder")}
    for index, side in enumerate(("encoder", "decoder")):
        tensors[f"model.{side}.embed_tokens.weight"] = spread(weights[f"{side}/embeddings/weight"], ids[index], words)
        tensors[f"model.{side}.embed_positions.weight"] = positions(weights["encoder/embeddings/weight"].shape[1])
    tensors["lm_head.weight"] = spread(weights["decoder/projection/weight"], ids[1], words)
    bias = np.full(len(words), RULED_OUT, np.float32)
    bias[ids[1]] = weights["decoder/projection/bias"]
    tensors["final_logits_bias"] = bias[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(weights, len(words))))
    special = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": BLANK}
    (folder / "generation_config.json").write_text(json.dumps(special | {"max_length": POSITIONS}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(words)), encoding="utf-8")
    return words


def read_weights(path: Path) -> Tensors:
    """Every variable by name; the format is described in the data's README."""
    data, at = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        return data[at - size : at - 1].decode()

    assert take("I") == 2
    assert text() == "TransformerBase"
    take("I")
    found: Tensors = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        size, count = take("B"), take("I")
        if size == 4:  # the rest are settings
            found[name] = np.frombuffer(data, np.float32, count, at).reshape(shape)
        at += size * count
    assert at == len(data)
    return found


def read_words(path: Path) -> list[str]:
    """The tokens by id, `<unk>` after those in the file."""
    return [*path.read_text(encoding="utf-8").rstrip("\n").split("\n"), "<unk>"]


def layers(weights: Tensors, side: str) -> Tensors:
    """The layers of a stack under Hugging Face's names: fused projections split, norms moved."""
    found: Tensors = {}

    def norm(name: str, at: str) -> None:
        found[f"model.{side}.{name}.weight"] = weights[f"{side}/{at}/gamma"].copy()
        found[f"model.{side}.{name}.bias"] = weights[f"{side}/{at}/beta"].copy()

    def linear(names: list[str], at: str) -> None:
        for part in ("weight", "bias"):
            pieces = np.split(weights[f"{side}/{at}/{part}"], len(names))
            for name, piece in zip(names, pieces, strict=True):
                found[f"model.{side}.{name}.{part}"] = piece.copy()

    for i in range(count_layers(weights, side)):
        hf, own = f"layers.{i}", f"layer_{i}"
        norm(f"{hf}.self_attn_layer_norm", f"{own}/self_attention/layer_norm")
        linear([f"{hf}.self_attn.{name}_proj" for name in "qkv"], f"{own}/self_attention/linear_0")
        linear([f"{hf}.self_attn.out_proj"], f"{own}/self_attention/linear_1")
        if side == "decoder":
            norm(f"{hf}.encoder_attn_layer_norm", f"{own}/attention/layer_norm")
            linear([f"{hf}.encoder_attn.q_proj"], f"{own}/attention/linear_0")
            linear([f"{hf}.encoder_attn.{name}_proj" for name in "kv"], f"{own}/attention/linear_1")
            linear([f"{hf}.encoder_attn.out_proj"], f"{own}/attention/linear_2")
        norm(f"{hf}.final_layer_norm", f"{own}/ffn/layer_norm")
        linear([f"{hf}.fc1"], f"{own}/ffn/linear_0")
        linear([f"{hf}.fc2"], f"{own}/ffn/linear_1")
    norm("layer_norm", "layer_norm")
    return found


def count_layers(weights: Tensors, side: str) -> int:
    return len({name.split("/")[1] for name in weights if name.startswith(f"{side}/layer_") and "/ffn/" in name})


def spread(rows: np.ndarray, ids: list[int], words: list[str]) -> np.ndarray:
    """[joint vocabulary, n] with `rows` at `ids`, zeros elsewhere."""
    table = np.zeros((len(words), rows.shape[1]), np.float32)
    table[ids] = rows
    return table


def positions(width: int) -> np.ndarray:
    """float32 [POSITIONS, width]: sines, then cosines, of positions 1, 2, ..."""
    steps = np.exp(np.arange(width // 2) * -(math.log(10000) / (width // 2 - 1)))
    angles = np.arange(1, POSITIONS + 1)[:, None] * steps
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def config(weights: Tensors, vocab_size: int) -> dict[str, object]:
    ffn, width = weights["encoder/layer_0/ffn/linear_0/weight"].shape
    stacks = {f"{side}_layers": count_layers(weights, side) for side in ("encoder", "decoder")}
    stacks |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
               (("attention_heads", 8), ("ffn_dim", ffn))}  # fmt: skip
    return {
        "architectures": ["BlenderbotForConditionalGeneration"],
        "model_type": "blenderbot",
        "vocab_size": vocab_size,
        "d_model": width,
        **stacks,
        "max_position_embeddings": POSITIONS,
        "activation_function": "relu",
        "scale_embedding": True,
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "decoder_start_token_id": START,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": BLANK,
        "torch_dtype": "float32",
    }


def tokenizer(words: list[str]) -> dict[str, object]:
    """One token a word between spaces; nothing is added to a source."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": words[index], **special} for index in (BLANK, START, END)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: id for id, word in enumerate(words)}, "unk_token": "<unk>"},
    }
