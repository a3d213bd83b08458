"""Calls of pipelines that are recorded with transformers 4 (make_task_fixtures.py) and repeated by test_tasks.py.

Texts that are made up stand here; those of XQuAD are named by their questions' ids.
"""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]

LONG = "Mary Stone went from Paris to the old river house , and John said it was good . " * 12
NAMES = [
    "Ada Lovelace works in London.",
    "The great king of Paris was not at home, but his cat was!",
    "Café Zoë's owner, O'Neill (born 1971), unhappily re-visited München.",
    "名前は太郎 and he lives in Tōkyō 😀 today",
]
PAIRS = [{"text": "The cat is small.", "text_pair": "A cat is not great."}, {"text": "Dogs", "text_pair": ""}]
STRATEGIES = ("none", "simple", "first", "average", "max")

# (task, model's head) -> calls: inputs, options
CASES: dict[tuple[str, str], list[Case]] = {
    ("fill-mask", "masked-lm"): [
        {"inputs": "The {mask} of Paris."},
        {"inputs": ["The {mask} of Paris."]},
        {"inputs": ["The {mask} of Paris.", "{mask} is good"], "options": {"top_k": 3}},
        {"inputs": "The {mask} of {mask} , and the {mask} .", "options": {"top_k": 2}},
        {"inputs": "The {mask} of Paris.", "options": {"targets": ["cat", "dog", "t", "cat"]}},
        {"inputs": "The {mask} of Paris.", "options": {"targets": "water", "top_k": 4}},
        {"inputs": "Don't ,  you {mask} ?!"},
    ],
    ("text-classification", "sentiment"): [
        {"inputs": "It was a good game."},
        {"inputs": ["It was a good game.", "Bad !"]},
        {"inputs": "It was a good game.", "options": {"top_k": None}},
        {"inputs": ["It was a good game.", "Bad !"], "options": {"top_k": 2}},
        {"inputs": "It was a good game.", "options": {"top_k": 1}},
        {"inputs": PAIRS[0]},
        {"inputs": PAIRS, "options": {"top_k": 1}},
        {"inputs": [[["The cat", "is red"]]]},
        {"inputs": "It was a good game.", "options": {"function_to_apply": "sigmoid", "top_k": None}},
        {"inputs": "It was a good game.", "options": {"function_to_apply": "none"}},
        {"inputs": "It was a good game.", "defaults": {"top_k": None}},
        {"inputs": ["It was a good game.", "Bad !"], "defaults": {"top_k": None}},
        {"inputs": ["It was a good game.", "Bad !"], "options": {"return_all_scores": True}},
        {"inputs": LONG, "options": {"truncation": True}},
        {"inputs": {"text": LONG, "text_pair": "small " * 70}, "options": {"truncation": True}},
        {"inputs": {"text": LONG, "text_pair": LONG}, "options": {"truncation": True, "max_length": 50}},
        {"inputs": {"text": "one", "text_pair": LONG}, "options": {"truncation": "only_second"}},
    ],
    ("text-classification", "topics"): [{"inputs": ["All about water", "the war"], "options": {"top_k": None}}],
    ("text-classification", "rating"): [{"inputs": "It was a good game."}],
    ("token-classification", "token-classification"): [
        *({"inputs": NAMES, "options": {"aggregation_strategy": name}} for name in STRATEGIES),
        {"inputs": NAMES[0]},
        {"inputs": NAMES[2], "options": {"aggregation_strategy": "simple", "ignore_labels": ["B-PER", "LOC"]}},
        {"inputs": NAMES[1], "options": {"ignore_labels": []}},
        {"inputs": LONG, "options": {"aggregation_strategy": "simple", "stride": 32}},
        {"inputs": LONG, "options": {"aggregation_strategy": "max", "stride": 100}},
    ],
    ("zero-shot-classification", "nli"): [
        {"inputs": "Water is blue in the light.", "options": {"candidate_labels": ["water", "war", "a cat"]}},
        {"inputs": "Water is blue.", "options": {"candidate_labels": "water, war", "multi_label": True}},
        {"inputs": ["Water is blue.", "Dogs"], "options": {"candidate_labels": ["water", "war"]}},
        {"inputs": "Water is blue.", "options": {"candidate_labels": "water"}},
        {"inputs": "Dogs", "options": {"candidate_labels": ["dog", "cat"], "hypothesis_template": "It is a {} ."}},
    ],
    ("feature-extraction", "base"): [{"inputs": "A small cat"}, {"inputs": ["A small cat", "!"]}],
}

# Of each language every so many-th question; then the options.
QUESTIONS_STEP = 119
ANSWER_OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 4, "max_answer_len": 7},
    {"doc_stride": 40, "max_seq_len": 224, "align_to_words": False, "top_k": 3},
    {"doc_stride": 0, "max_seq_len": 200, "top_k": 5, "handle_impossible_answer": True},
]


def masked(inputs: Any, mask: str) -> Any:
    """Inputs with the tokenizer's own mask token."""
    if isinstance(inputs, str):
        return inputs.replace("{mask}", str(mask))
    return [masked(each, mask) for each in inputs] if isinstance(inputs, list) else inputs


def summary(task: str, result: Any) -> Any:
    """What is stored of a result: of features the shape and a few numbers of each text, else everything."""
    if task != "feature-extraction":
        return result
    texts = result if isinstance(result[0][0][0], list) else [result]
    return [[len(texts), len(rows), len(rows[0]), *rows[0][:3], *rows[-1][-3:]] for (rows,) in texts]
