"""The generate() options that make_fixtures.py records: lists of dicts in Hugging Face's names. Imports nothing."""

from __future__ import annotations

from typing import Any


def beam_options(eos: list[int]) -> list[tuple[str, dict[str, Any]]]:
    cases: list[tuple[str, dict[str, Any]]] = []
    for beams in (2, 3, 4, 8):
        for early in (True, False, "never"):
            for penalty in (0.5, 1.0, 2.0):
                returned = {2: 1, 3: 3, 4: 2, 8: 5}[beams]
                options = {"num_beams": beams, "early_stopping": early, "length_penalty": penalty}
                options |= {"num_return_sequences": returned, "max_new_tokens": 12, "eos_token_id": eos[0]}
                cases.append((f"beams {beams} early_stopping {early} length_penalty {penalty}", options))
    two = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 14}
    cases += [
        ("beams, no end token", two),
        ("beams, three end tokens", two | {"eos_token_id": eos}),
        ("beams, negative length penalty", two | {"eos_token_id": eos[0], "length_penalty": -1.0}),
        ("beams, no length penalty", two | {"eos_token_id": eos[0], "length_penalty": 0.0}),
        ("beams, one new token", two | {"eos_token_id": eos[0], "max_new_tokens": 1}),
        ("beams, max_length", {"num_beams": 3, "max_length": 24, "eos_token_id": eos[0]}),
    ]
    return cases


def filter_options(eos: list[int], greedy: list[int], prompt_length: int) -> list[tuple[str, dict[str, Any]]]:
    """Each filter alone and a few together; token lists are taken from the unfiltered text so that they bite."""
    a, b, c = greedy[0], greedy[1], greedy[2]
    return [
        ("repetition_penalty 1.3", {"repetition_penalty": 1.3}),
        ("repetition_penalty 0.8", {"repetition_penalty": 0.8}),
        ("no_repeat_ngram_size 1", {"no_repeat_ngram_size": 1}),
        ("no_repeat_ngram_size 2", {"no_repeat_ngram_size": 2}),
        ("no_repeat_ngram_size 3", {"no_repeat_ngram_size": 3}),
        ("bad_words_ids", {"bad_words_ids": [[a], [b, c], [c, a, b]]}),
        ("min_length", {"min_length": prompt_length + 10, "eos_token_id": eos}),
        ("min_new_tokens", {"min_new_tokens": 9, "eos_token_id": eos}),
        ("suppress_tokens", {"suppress_tokens": [a, c, 7]}),
        ("begin_suppress_tokens", {"begin_suppress_tokens": [a, b]}),
        ("forced_eos_token_id", {"forced_eos_token_id": eos[0], "eos_token_id": eos[0]}),
        ("forced_eos_token_id list", {"forced_eos_token_id": eos, "eos_token_id": eos}),
        ("sequence_bias", {"sequence_bias": [[[a], -4.0], [[b, c], -6.0], [[11], 3.5]]}),
        ("exponential_decay_length_penalty", {"exponential_decay_length_penalty": [3, 1.4], "eos_token_id": eos[0]}),
        ("together", {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[a], [b, c]]}
         | {"min_new_tokens": 5, "suppress_tokens": [7, 9], "eos_token_id": eos}),
    ]  # fmt: skip


def sampling_options() -> list[dict[str, Any]]:
    """Filters of sampling: compared as scores after filtering."""
    sample = {"do_sample": True, "top_k": 0}
    return [
        sample | {"temperature": 0.7},
        sample | {"temperature": 1.5},
        sample | {"top_k": 5},
        sample | {"top_k": 500},
        sample | {"top_p": 0.9},
        sample | {"top_p": 0.3},
        sample | {"top_p": 0.01},
        sample | {"min_p": 0.1},
        sample | {"min_p": 0.9},
        sample | {"typical_p": 0.9},
        sample | {"typical_p": 0.2},
        sample | {"epsilon_cutoff": 0.01},
        sample | {"eta_cutoff": 0.01},
        sample | {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02},
        sample | {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "typical_p": 0.7, "repetition_penalty": 1.2},
        sample | {"num_beams": 4, "top_k": 1, "eos_token_id": [5, 6]},  # beams keep one token more than there are ends
        sample | {"num_beams": 4, "top_p": 0.01, "eos_token_id": [5, 6]},
    ]


def plain_options() -> list[dict[str, Any]]:
    """Filters of any search on the rows below: ids are drawn from 20..27, so every pattern occurs."""
    words = [[20], [21, 22], [23, 20, 24], [25, 25]]
    return [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": words},
        {"bad_words_ids": [[20], [21], [5]], "eos_token_id": [5, 6]},
        {"min_length": 40, "eos_token_id": 5},
        {"min_length": 10, "eos_token_id": 5},
        {"min_new_tokens": 20, "eos_token_id": [5, 6]},
        {"min_new_tokens": 5, "eos_token_id": [5, 6]},
        {"suppress_tokens": [0, 7, 130]},
        {"begin_suppress_tokens": [0, 7, 130]},
        {"forced_eos_token_id": 5, "max_length": 33, "eos_token_id": 5},
        {"forced_eos_token_id": [5, 6], "max_length": 33, "eos_token_id": 5},
        {"forced_eos_token_id": 5, "max_length": 34, "eos_token_id": 5},
        {"sequence_bias": [[word, 2.5 - 3 * index] for index, word in enumerate(words)]},
        {"exponential_decay_length_penalty": [4, 1.3], "eos_token_id": [5, 6]},
        {"remove_invalid_values": True},
    ]
