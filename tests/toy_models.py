"""Toy model configurations, as their config.json: every wiring variant, a forward pass takes a millisecond.

Sizes are awkward on purpose (widths that no vector length divides, heads of 12, a vocabulary of 131). Data only:
make_fixtures.py turns each into a folder under fixtures/ with random weights and outputs recorded from transformers.
Some use the config.json style of transformers 4 (`rope_theta`, `rope_scaling`), some that of 5 (`rope_parameters`).
"""

from __future__ import annotations

from typing import Any

from toy_decoders_a import CONFIGS_A, STORED_DTYPE_A
from toy_decoders_b import CONFIGS_B, STORED_DTYPE_B

VOCAB_SIZE = 131

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": VOCAB_SIZE,
        "n_positions": 96,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 80,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 130,
        "eos_token_id": 130,
    },
    "gpt2-untied": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": VOCAB_SIZE,
        "n_positions": 64,
        "n_embd": 36,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": None,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "bos_token_id": 130,
        "eos_token_id": 130,
    },
    "llama": {
        **_LLAMA,
        "hidden_size": 48,
        "intermediate_size": 80,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
    "llama-rope-llama3": {
        **_LLAMA,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-rope-linear-biases": {
        **_LLAMA,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama-rope-yarn": {
        **_LLAMA,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    },
    "llama-rope-dynamic": {
        **_LLAMA,
        "num_hidden_layers": 1,
        "max_position_embeddings": 48,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 60,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "bos_token_id": 129,
        "eos_token_id": [128, 129],
    },
    "qwen2-window": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
        "bos_token_id": 129,
        "eos_token_id": 128,
    },
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 10,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

CONFIGS |= CONFIGS_A | CONFIGS_B

# How the weights are stored: all three types a checkpoint may have, fp32 where beams are compared.
STORED_DTYPE: dict[str, str] = {
    "gpt2": "float32",
    "gpt2-untied": "float16",
    "llama": "float32",
    "llama-rope-llama3": "bfloat16",
    "llama-rope-linear-biases": "float16",
    "llama-rope-yarn": "float32",
    "llama-rope-dynamic": "bfloat16",
    "qwen2": "bfloat16",
    "qwen2-window": "bfloat16",
    "mistral": "bfloat16",
}

STORED_DTYPE |= STORED_DTYPE_A | STORED_DTYPE_B

# Models with recorded beams and filters (the others have logits, greedy text and one search of 4 beams).
SEARCH_MODELS = ("gpt2", "llama", "qwen2")
