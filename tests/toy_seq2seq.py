"""Toy encoder-decoder configurations, as their config.json: every wiring, sizes awkward on purpose. Data only.

make_seq2seq_fixtures.py turns each into a folder under fixtures/ with random weights and what transformers computes.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 131

_T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": VOCAB_SIZE,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 36,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 24,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}

_BART: dict[str, Any] = {
    "model_type": "bart",
    "architectures": ["BartForConditionalGeneration"],
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 28,
    "activation_function": "gelu",
    "scale_embedding": False,
    "is_encoder_decoder": True,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {**_T5, "num_layers": 3},
    "t5-v1.1": {
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "mt5": {
        **_T5,
        "model_type": "mt5",
        "architectures": ["MT5ForConditionalGeneration"],
        "num_layers": 1,
        "num_decoder_layers": 1,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "umt5": {
        **_T5,
        "model_type": "umt5",
        "architectures": ["UMT5ForConditionalGeneration"],
        "feed_forward_proj": "gated-silu",
        "tie_word_embeddings": False,
    },
    "bart": _BART,
    "bart-untied": {
        **_BART,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "scale_embedding": True,
        "tie_word_embeddings": False,
    },
    "bart-mnli": {
        **_BART,
        "architectures": ["BartForSequenceClassification"],
        "encoder_layers": 1,
        "decoder_layers": 2,
        "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment", "3": "unrelated"},
        "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2, "unrelated": 3},
    },
    "plbart": {
        **_BART,
        "model_type": "plbart",
        "architectures": ["PLBartForConditionalGeneration"],
        "encoder_layers": 1,
        "decoder_layers": 1,
        "scale_embedding": True,
    },
    "mbart": {
        **_BART,
        "model_type": "mbart",
        "architectures": ["MBartForConditionalGeneration"],
        "scale_embedding": True,
        "decoder_start_token_id": 2,
    },
    "pegasus": {
        **_BART,
        "model_type": "pegasus",
        "architectures": ["PegasusForConditionalGeneration"],
        "activation_function": "relu",
        "scale_embedding": True,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    },
    "marian": {
        **_BART,
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "activation_function": "swish",
        "scale_embedding": True,
        "decoder_vocab_size": VOCAB_SIZE,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "normalize_embedding": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": VOCAB_SIZE - 1,
        "decoder_start_token_id": VOCAB_SIZE - 1,
    },
    "marian-separate": {
        **_BART,
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "activation_function": "relu",
        "encoder_layers": 1,
        "vocab_size": 97,
        "decoder_vocab_size": VOCAB_SIZE,
        "share_encoder_decoder_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 96,
        "decoder_start_token_id": 96,
    },
    "m2m_100": {
        **_BART,
        "model_type": "m2m_100",
        "architectures": ["M2M100ForConditionalGeneration"],
        "activation_function": "relu",
        "scale_embedding": True,
        "encoder_layers": 3,
        "decoder_ffn_dim": 32,
    },
    "blenderbot": {
        **_BART,
        "model_type": "blenderbot",
        "architectures": ["BlenderbotForConditionalGeneration"],
        "encoder_layers": 1,
        "scale_embedding": True,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "blenderbot-small": {
        **_BART,
        "model_type": "blenderbot-small",
        "architectures": ["BlenderbotSmallForConditionalGeneration"],
        "scale_embedding": True,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
}

# How the weights are stored; fp32 where many searches are compared.
STORED_DTYPE: dict[str, str] = {
    **dict.fromkeys(CONFIGS, "bfloat16"),
    **dict.fromkeys(("bart-untied", "mbart", "pegasus"), "float16"),
    **dict.fromkeys(("t5", "bart", "marian", "m2m_100"), "float32"),
}

# Models with many recorded searches (the others have one greedy text and one of beams).
SEARCH_MODELS = ("t5", "bart", "marian", "m2m_100")

# Models that write text; the others classify.
GENERATING = tuple(name for name in CONFIGS if name != "bart-mnli")

# Random weights whose text stands still or rests on rounding are drawn again.
SEEDS: dict[str, int] = {"t5": 4, "t5-v1.1": 3, "umt5": 4, "bart": 5, "m2m_100": 3}

# What the Hub's generation_config.json files say beside the special tokens.
GENERATION: dict[str, dict[str, Any]] = {
    "bart": {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "num_beams": 4,
        "early_stopping": True,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
        "min_length": 8,
        "max_length": 24,
    },
    "marian": {
        "bad_words_ids": [[VOCAB_SIZE - 1]],
        "forced_eos_token_id": 0,
        "num_beams": 4,
        "max_length": 24,
        "renormalize_logits": True,
    },
    "m2m_100": {"num_beams": 5, "early_stopping": True, "max_length": 20},
    "blenderbot": {
        "encoder_no_repeat_ngram_size": 3,
        "no_repeat_ngram_size": 3,
        "forced_eos_token_id": 2,
        "length_penalty": 0.65,
        "min_length": 10,
        "max_length": 24,
        "num_beams": 6,
    },
}
