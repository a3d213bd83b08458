"""Toy encoder configurations, as their config.json: every family, and every head on some of them. Data only.

make_encoder_fixtures.py turns each into a folder under fixtures/. `architectures` chooses the head.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 131

_BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_ROBERTA: dict[str, Any] = {
    **_BERT,
    "model_type": "roberta",
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
_LABELS = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC"}}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "architectures": ["BertForMaskedLM"], "hidden_act": "gelu_new"},
    "bert-base": {**_BERT, "architectures": ["BertModel"], "hidden_act": "relu"},
    "bert-qa": {**_BERT, "architectures": ["BertForQuestionAnswering"]},
    "bert-classify": {**_BERT, "architectures": ["BertForSequenceClassification"], **_LABELS},
    "roberta": {**_ROBERTA, "architectures": ["RobertaForMaskedLM"]},
    "roberta-classify": {**_ROBERTA, "architectures": ["RobertaForSequenceClassification"]},
    "xlm-roberta": {
        **_ROBERTA,
        "model_type": "xlm-roberta",
        "architectures": ["XLMRobertaForTokenClassification"],
        **_LABELS,
    },
    "camembert": {**_ROBERTA, "model_type": "camembert", "architectures": ["CamembertForMaskedLM"]},
    "electra": {**_BERT, "model_type": "electra", "architectures": ["ElectraForPreTraining"], "embedding_size": 20},
    "electra-generator": {
        **_BERT,
        "model_type": "electra",
        "architectures": ["ElectraForMaskedLM"],
        "embedding_size": 24,
    },
    "electra-classify": {
        **_BERT,
        "model_type": "electra",
        "architectures": ["ElectraForSequenceClassification"],
        "embedding_size": 20,
    },
    "distilbert": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": VOCAB_SIZE,
        "dim": 24,
        "hidden_dim": 40,
        "n_layers": 2,
        "n_heads": 2,
        "activation": "gelu",
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "albert": {
        **_BERT,
        "model_type": "albert",
        "architectures": ["AlbertForMaskedLM"],
        "embedding_size": 20,
        "hidden_act": "gelu_new",
        "num_hidden_layers": 4,
        "num_hidden_groups": 2,
        "inner_group_num": 1,
    },
    "mpnet": {
        **_ROBERTA,
        "model_type": "mpnet",
        "architectures": ["MPNetForMaskedLM"],
        "max_position_embeddings": 202,
        "relative_attention_num_buckets": 32,
    },
    "modernbert": {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_activation": "gelu",
        "max_position_embeddings": 96,
        "norm_eps": 1e-5,
        "local_attention": 16,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
_DEBERTA: dict[str, Any] = {
    **_BERT,
    "model_type": "deberta-v2",
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
ENCODERS["deberta-v2"] = {**_DEBERTA, "architectures": ["DebertaV2ForMaskedLM"]}
ENCODERS["deberta-v2-classify"] = {
    **_DEBERTA,
    "architectures": ["DebertaV2ForSequenceClassification"],
    "position_buckets": -1,
    "max_relative_positions": 20,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "pos_att_type": ["c2p"],
    "position_biased_input": True,
    "type_vocab_size": 2,
    "embedding_size": 20,
    "pooler_hidden_act": "tanh",
}
ENCODERS["distilbert-classify"] = {
    **ENCODERS["distilbert"],
    "architectures": ["DistilBertForSequenceClassification"],
    "activation": "relu",
}
ENCODERS["albert-classify"] = {
    **ENCODERS["albert"],
    "architectures": ["AlbertForSequenceClassification"],
    "num_hidden_layers": 2,
    "num_hidden_groups": 1,
    "inner_group_num": 2,
}
ENCODERS["mpnet-classify"] = {
    **ENCODERS["mpnet"],
    "architectures": ["MPNetForSequenceClassification"],
    "max_position_embeddings": 66,
}
ENCODERS["modernbert-classify"] = {
    **ENCODERS["modernbert"],
    "architectures": ["ModernBertForSequenceClassification"],
    "classifier_pooling": "mean",
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
}

# How the weights are stored; float32 where no name is listed.
STORED_DTYPE: dict[str, str] = {
    "bert-base": "float16",
    "bert-qa": "bfloat16",
    "bert-classify": "bfloat16",
    "roberta": "float16",
    "roberta-classify": "bfloat16",
    "xlm-roberta": "bfloat16",
    "camembert": "bfloat16",
    "electra": "float16",
    "electra-generator": "bfloat16",
    "electra-classify": "bfloat16",
    "distilbert-classify": "float16",
    "albert": "bfloat16",
    "deberta-v2-classify": "bfloat16",
    "albert-classify": "float16",
    "mpnet": "bfloat16",
    "mpnet-classify": "bfloat16",
    "modernbert": "float16",
    "modernbert-classify": "bfloat16",
}
