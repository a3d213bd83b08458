"""Converts llama2.c's stories260K (stories260K.bin, tok512.bin) into a Hugging Face folder: a real model for tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BOS, EOS = 1, 2
FIRST_BYTE, FIRST_PIECE = 3, 259  # ids of <0x00> and of the first piece that is no byte


def convert(source: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors and tokenizer.json into `folder`."""
    config, tensors = read_weights(source / "stories260K.bin")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": [BOS, EOS]}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(*read_pieces(source / "tok512.bin", 512))))


def read_weights(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """llama2.c's version 0: seven int32, then float32 arrays in a fixed order; vocabulary > 0 means a tied head."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack("<7i", data[:28])
    assert vocab > 0
    kv_dim = dim // heads * kv_heads
    shapes = {
        "embed_tokens.weight": (vocab, dim),
        "layers.{}.input_layernorm.weight": (layers, dim),
        "layers.{}.self_attn.q_proj.weight": (layers, dim, dim),
        "layers.{}.self_attn.k_proj.weight": (layers, kv_dim, dim),
        "layers.{}.self_attn.v_proj.weight": (layers, kv_dim, dim),
        "layers.{}.self_attn.o_proj.weight": (layers, dim, dim),
        "layers.{}.post_attention_layernorm.weight": (layers, dim),
        "layers.{}.mlp.gate_proj.weight": (layers, hidden, dim),
        "layers.{}.mlp.down_proj.weight": (layers, dim, hidden),
        "layers.{}.mlp.up_proj.weight": (layers, hidden, dim),
        "norm.weight": (dim,),
    }
    floats = np.frombuffer(data, np.float32, offset=28)
    tensors, begin = {}, 0
    for name, shape in shapes.items():
        array = floats[begin : begin + np.prod(shape)].reshape(shape)
        begin += array.size
        if "{}" not in name:
            tensors["model." + name] = array.copy()
            continue
        for layer in range(layers):
            count = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2], 0)
            tensors["model." + name.format(layer)] = split_pairs(array[layer], count) if count else array[layer].copy()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    return config, tensors


def split_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of neighbouring rotary pairs (2i, 2i + 1) to Hugging Face's halves (i, i + head_dim / 2)."""
    paired = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return np.ascontiguousarray(paired.transpose(0, 2, 1, 3)).reshape(weight.shape)


def read_pieces(path: Path, count: int) -> tuple[list[str], list[float]]:
    """Pieces and their scores; a piece's spaces are SentencePiece's U+2581."""
    data, at = path.read_bytes(), 4
    pieces, scores = [], []
    for index in range(count):
        score, size = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + size].decode()
        at += 8 + size
        pieces.append(text.replace(" ", "\u2581") if index >= FIRST_PIECE else text)
        scores.append(score)
    return ["<unk>", "<s>", "</s>", *pieces[FIRST_BYTE:]], scores


def tokenizer(pieces: list[str], scores: list[float]) -> dict[str, object]:
    """SentencePiece BPE with byte fallback as a tokenizer.json: merges by falling score of what they make."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, index in ids.items():
        if index < FIRST_PIECE:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-scores[index], ids[left], ids[right], left, right))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": pieces[index], **special} for index in range(FIRST_BYTE)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [[left, right] for _, _, _, left, right in sorted(merges)],
        },
    }
