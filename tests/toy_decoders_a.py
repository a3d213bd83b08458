"""Toy configurations of GPT-J to StableLM, in the form of toy_models.py, which takes them in.

One for each wiring: Falcon 7B, 40B, 11B and RW, opt-350m, a sequential NeoX, and so on. Rotary fields in both styles.
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {"vocab_size": 131, "bos_token_id": 130, "eos_token_id": 129}
_GPT: dict[str, Any] = {
    **_COMMON,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "n_inner": 28,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
_HIDDEN: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 96,
}
_NEOX: dict[str, Any] = {
    **_HIDDEN,
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_OPT: dict[str, Any] = {
    **_COMMON,
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 24,
    "ffn_dim": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "activation_function": "relu",
    "pad_token_id": 1,
}
_BLOOM: dict[str, Any] = {
    **_COMMON,
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "n_layer": 2,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 96,
}
_FALCON: dict[str, Any] = {
    **_COMMON,
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 24,
    "ffn_hidden_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "layer_norm_epsilon": 1e-5,
}
_MPT: dict[str, Any] = {
    **_COMMON,
    "model_type": "mpt",
    "architectures": ["MPTForCausalLM"],
    "n_layers": 2,
    "max_seq_len": 96,
    "learned_pos_emb": True,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
}
_STARCODER2: dict[str, Any] = {
    **_HIDDEN,
    "model_type": "starcoder2",
    "architectures": ["Starcoder2ForCausalLM"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
}
_PHI: dict[str, Any] = {
    **_HIDDEN,
    "model_type": "phi",
    "architectures": ["PhiForCausalLM"],
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_STABLELM: dict[str, Any] = {
    **_HIDDEN,
    "model_type": "stablelm",
    "architectures": ["StableLmForCausalLM"],
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}

CONFIGS_A: dict[str, dict[str, Any]] = {
    "gptj": {**_GPT, "model_type": "gptj", "architectures": ["GPTJForCausalLM"], "rotary_dim": 4},
    "codegen": {**_GPT, "model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "rotary_dim": 6},
    "gpt-neo": {
        **_COMMON,
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_layers": 3,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 10,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "gpt-neox": {**_NEOX, "use_parallel_residual": True, "rotary_pct": 0.25, "rotary_emb_base": 10000},
    "gpt-neox-sequential": {
        **_NEOX,
        "use_parallel_residual": False,
        "attention_bias": False,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 2.0,
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "opt": {**_OPT, "do_layer_norm_before": True, "word_embed_proj_dim": 24},
    "opt-350m": {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "opt-plain": {
        **_OPT,
        "activation_function": "gelu",
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "_remove_final_layer_norm": True,
        "tie_word_embeddings": False,
    },
    "bloom": {**_BLOOM, "n_embed": 24, "hidden_size": 24, "num_attention_heads": 3},
    "bloom-residual": {
        **_BLOOM,
        "hidden_size": 24,
        "n_head": 4,
        "apply_residual_connection_post_layernorm": True,
        "tie_word_embeddings": False,
    },
    "falcon-7b": {**_FALCON, "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False},
    "falcon-40b": {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "rope_theta": 500.0,
        "bias": True,
        "tie_word_embeddings": False,
    },
    "falcon-11b": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-rw": {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    "mpt": {**_MPT, "d_model": 24, "n_heads": 3, "attn_config": {"alibi": True, "alibi_bias_max": 8}},
    "mpt-scaled": {
        **_MPT,
        "d_model": 24,
        "n_heads": 4,
        "attn_config": {"alibi": True, "softmax_scale": 0.5},
        "tie_word_embeddings": False,
    },
    "starcoder": {
        **_GPT,
        "model_type": "gpt_bigcode",
        "architectures": ["GPTBigCodeForCausalLM"],
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": True,
    },
    "starcoder-heads": {
        **_GPT,
        "model_type": "gpt_bigcode",
        "architectures": ["GPTBigCodeForCausalLM"],
        "activation_function": "gelu",
        "multi_query": False,
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    },
    "starcoder2": {**_STARCODER2, "sliding_window": 12, "rope_theta": 999999.4420358813, "use_bias": True},
    "starcoder2-plain": {**_STARCODER2, "use_bias": False, "tie_word_embeddings": False, "rope_theta": 10000.0},
    "phi": {**_PHI, "partial_rotary_factor": 0.5, "num_key_value_heads": None, "tie_word_embeddings": False},
    "phi-norms": {
        **_PHI,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "partial_rotary_factor": 0.75,
        "num_key_value_heads": 2,
        "qk_layernorm": True,
    },
    "stablelm": {**_STABLELM, "num_key_value_heads": 3, "partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "stablelm-norms": {
        **_STABLELM,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": True,
    },
}

# The others are stored in bfloat16.
_WIDE = {"gptj": "float16", "mpt": "float16", "opt": "float16", "bloom": "float16"}
STORED_DTYPE_A: dict[str, str] = {name: _WIDE.get(name, "bfloat16") for name in CONFIGS_A}

# Listings in golden/: file -> the toy it lists.
LISTED_A: dict[str, str] = {
    "gptj": "gptj",
    "codegen": "codegen",
    "gpt_neo": "gpt-neo",
    "gpt_neox": "gpt-neox",
    "opt": "opt",
    "opt-350m": "opt-350m",
    "bloom": "bloom",
    "falcon": "falcon-40b",
    "falcon-rw": "falcon-rw",
    "mpt": "mpt",
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder2",
    "phi": "phi-norms",
    "stablelm": "stablelm-norms",
}
