"""What transformers' tokenizer classes have by themselves: special tokens by class, and the class of a model type."""

from __future__ import annotations

_END = "<|endoftext|>"
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_BERT_WITH_ENDS = {"bos_token": "[CLS]", "eos_token": "[SEP]", **_BERT}
_GPT2 = {"bos_token": _END, "eos_token": _END, "unk_token": _END}

BERT_CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "MobileBertTokenizer",
    "ConvBertTokenizer",
    "SqueezeBertTokenizer",
)
# Byte-level vocabularies with <s> text </s> around a text.
ROBERTA_CLASSES = ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer")

CLASS_TOKENS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": {**_GPT2, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {"eos_token": _END, "pad_token": _END},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    **dict.fromkeys(ROBERTA_CLASSES, _ROBERTA),
    "BlenderbotTokenizer": _ROBERTA,
    "DebertaTokenizer": _BERT_WITH_ENDS,
    **dict.fromkeys(BERT_CLASSES, _BERT),
    "MPNetTokenizer": {**_ROBERTA, "unk_token": "[UNK]"},
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "AlbertTokenizer": {**_BERT_WITH_ENDS, "unk_token": "<unk>", "pad_token": "<pad>"},
    "DebertaV2Tokenizer": _BERT_WITH_ENDS,
    "PegasusTokenizer": {
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask_2>",
    },
    **dict.fromkeys(("XLMRobertaTokenizer", "CamembertTokenizer", "MBartTokenizer", "NllbTokenizer"), _ROBERTA),
    "MBart50Tokenizer": {key: value for key, value in _ROBERTA.items() if key != "bos_token"},
    "MarianTokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "M2M100Tokenizer": {key: value for key, value in _ROBERTA.items() if key not in ("cls_token", "mask_token")},
}
# Classes that let a mask token given as plain text swallow the spaces before it (transformers 4; 5 forgot it for some).
WIDE_MASK_CLASSES = (
    *ROBERTA_CLASSES,
    "BlenderbotTokenizer",
    "DebertaTokenizer",
    "MPNetTokenizer",
    "AlbertTokenizer",
    "XLMRobertaTokenizer",
    "CamembertTokenizer",
    "MBartTokenizer",
    "MBart50Tokenizer",
    "NllbTokenizer",
)

# The class of a model type whose tokenizer_config.json names none.
MODEL_CLASSES = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "gpt_bigcode", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("codegen", "phi"), "CodeGenTokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("roberta", "bart", "longformer", "led", "mvp"), "RobertaTokenizer"),
    "blenderbot": "BlenderbotTokenizer",
    "deberta": "DebertaTokenizer",
    **dict.fromkeys(("bert", "electra", "mobilebert", "convbert", "squeezebert", "nomic_bert"), "BertTokenizer"),
    "distilbert": "DistilBertTokenizer",
    "mpnet": "MPNetTokenizer",
    **dict.fromkeys(("t5", "mt5", "umt5"), "T5Tokenizer"),
    "albert": "AlbertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    **dict.fromkeys(("pegasus", "bigbird_pegasus", "pegasus_x"), "PegasusTokenizer"),
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer",
    "m2m_100": "M2M100Tokenizer",
}
