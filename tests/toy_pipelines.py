"""Toy encoder-decoders with real tokenizers, for tests of pipelines: random weights that are the same everywhere.

Imports nothing but NumPy, safetensors and pyllm's descriptions of models: make_pipeline_fixtures.py writes the same
folders under an old transformers.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pyllm.models import build_network

TO_RESIDUAL = ("out_proj", "fc2", ".o.weight", "wo.weight")  # matrices whose outputs are added to the stream

_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "is_encoder_decoder": True,
    "scale_embedding": False,
}
MARIAN: dict[str, Any] = {
    **_BART,
    "model_type": "marian",
    "architectures": ["MarianMTModel"],
    "activation_function": "relu",
    "vocab_size": 54776,
    "pad_token_id": 54775,
    "eos_token_id": 44670,
    "decoder_start_token_id": 54775,
    "bad_words_ids": [[54775]],
    "forced_eos_token_id": 44670,
    "max_length": 24,
    "num_beams": 4,
    "no_repeat_ngram_size": 1,
}
T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 1104,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "task_specific_params": {
        "summarization": {
            "early_stopping": True,
            "length_penalty": 2.0,
            "max_length": 20,
            "min_length": 8,
            "no_repeat_ngram_size": 3,
            "num_beams": 4,
            "prefix": "summarize: ",
        },
        "translation_en_to_de": {
            "early_stopping": True,
            "max_length": 16,
            "num_beams": 4,
            "prefix": "translate English to German: ",
        },
        "translation_en_to_fr": {"max_length": 12, "num_beams": 2, "prefix": "translate English to French: "},
    },
}
MBART: dict[str, Any] = {
    **_BART,
    "model_type": "mbart",
    "architectures": ["MBartForConditionalGeneration"],
    "activation_function": "gelu",
    "vocab_size": 1028,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
CONFIGS = {"marian": MARIAN, "t5": T5, "mbart": MBART}
# Folder of the test data -> what its files are called here.
TOKENIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "marian": (
        "tokenizers/marian-en-pt",
        {
            name: name
            for name in (
                "source.spm",
                "target.spm",
                "vocab.json",
                "special_tokens_map.json",
                "tokenizer_config.json",
            )
        },
    ),
    "t5": ("tokenizers/sentencepiece-unigram-1k", {"test_sentencepiece.model": "spiece.model"}),
    "mbart": ("tokenizers/sentencepiece-unigram-1k", {"test_sentencepiece.model": "sentencepiece.bpe.model"}),
}
TOKENIZER_CONFIGS: dict[str, dict[str, Any]] = {
    "marian": {"model_max_length": 64},
    "t5": {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 64, "legacy": True},
    "mbart": {"tokenizer_class": "MBartTokenizer", "model_max_length": 64},
}


def write(name: str, folder: Path, data: Path) -> Path:
    """The toy's folder, `folder` / name. data: the folder that holds the tokenizer's files."""
    folder = folder / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    for source, target in TOKENIZERS[name][1].items():
        shutil.copy(data / source, folder / target)
    file = folder / "tokenizer_config.json"
    given = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(given | TOKENIZER_CONFIGS[name]))
    within = "" if name == "t5" else "model."
    bare = ("final_logits_bias",)
    tensors = {key if key in bare else within + key: value for key, value in random_tensors(CONFIGS[name]).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights whose logits have a deviation of a few: texts that vary with their sources."""
    network = build_network(config)
    shapes = {source.name: source.shape for program in network.programs.values() for source in program.sources()}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
        if "relative_attention_bias" in name:
            tensors[name] = noise
        elif len(shape) == 1 or 1 in shape:
            tensors[name] = (0.3 * noise if "bias" in name else 1 + 0.2 * noise).astype(np.float32)
        elif "shared" in name or "embed" in name:
            tensors[name] = (0.4 * noise).astype(np.float32)
        else:
            gain = 2.5 if any(part in name for part in TO_RESIDUAL) else 1.4
            tensors[name] = (gain * noise / np.sqrt(shape[-1])).astype(np.float32)
    return tensors
