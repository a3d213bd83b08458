"""Choosing tokens and ranking continuations, for cuda_kernels.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllm.decode import _search

VOCABULARY = 128256
SEED = 7
# name -> temperature (0: greedy), top-k, top-p, min-p; what is known of them (program.batch: UNCUT, CUT_BY_K, CUT)
CUTS: dict[str, tuple[float, int, float, float, int]] = {
    "greedy": (0.0, 0, 1.0, 0.0, 0),
    "drawn": (0.8, 0, 1.0, 0.0, 0),
    "top_k 50": (0.8, 50, 1.0, 0.0, 1),
    "top_k 50, top_p 0.9": (0.8, 50, 0.9, 0.0, 1),
    "top_p 0.9": (0.8, 0, 0.9, 0.0, 2),
}
BEST = 8


def logits_of(card: Any, copies: int, rows: int, width: int) -> tuple[np.ndarray, Any]:
    """As a trained model's: normal deviates, times 3. On the host the first copy only."""
    ready = (3 * np.random.RandomState(0).standard_normal((rows, width))).astype(np.float32)
    held = card.xp.zeros((copies, rows, width), np.float32)
    for i in range(copies):
        held[i] = card.xp.asarray(np.roll(ready, 64 * i, axis=1))
    return ready, held


def choices(card: Any, only: str) -> Iterator[dict[str, Any]]:
    for rows in (1, 64):
        width = 1024 if card.tiny else VOCABULARY
        copies = 1 if card.tiny else max(1, (192 << 20) // (rows * width * 4) + 1)
        labels = [f"choose {name} {rows} x {VOCABULARY}" for name in CUTS]
        labels.append(f"top {BEST} of {rows} x {VOCABULARY}")
        labels.append(f"log_softmax {rows} x {VOCABULARY}, one token ruled out")
        wanted = [label for label in labels if re.search(only, label)]
        if not wanted:
            continue
        ready, held = logits_of(card, copies, rows, width)
        views = [(card.pointer(each), width, "float32") for each in held]
        for label, cuts in zip(labels, CUTS.values(), strict=False):
            if label in wanted:
                yield chosen(card, label, cuts, ready, views)
        if labels[-2] in wanted:
            yield ranked(card, labels[-2], ready, views)
        if labels[-1] in wanted:  # the last one: it changes the rows
            yield changed(card, labels[-1], ready, views, held)


def chosen(card: Any, label: str, cuts: tuple[float, int, float, float, int], ready: Any, views: Any) -> dict[str, Any]:
    rows, width = ready.shape
    entries = np.zeros(rows, card.module.choice_dtype())
    for name, value in zip(("temperature", "top_k", "top_p", "min_p"), cuts, strict=False):
        entries[name] = value
    entries["seed"], entries["sequence"] = SEED, np.arange(rows)
    held = card.xp.asarray(entries.view(np.uint8))
    tokens = card.xp.zeros(rows, np.int32)
    workspace = card.xp.zeros(card.module.choose_workspace(rows, width), np.uint8)
    at = [card.pointer(array) for array in (held, tokens, workspace)]

    def launch(i: int, stream: int) -> None:
        card.module.choose(views[i], rows, width, *at, cuts=cuts[4], stream=stream)

    launch(0, 0)
    card.synchronise()
    uniforms = [_search.uniform(SEED, 0, i, 0) for i in range(rows)]
    expected = _search.sample(ready, *cuts[:4], uniforms) if cuts[0] else ready.argmax(axis=1)
    missed = int(np.sum(card.host(tokens) != np.asarray(expected)))
    if missed > rows // 16:  # rounding may decide one in thousands
        raise SystemExit(f"{label}: {missed} of {rows} tokens are not the host's")
    return {
        "case": label,
        "us": card.microseconds(launch, len(views)),
        "bytes": rows * width * 4,
        "error": missed / rows,
    }


def ranked(card: Any, label: str, ready: Any, views: Any) -> dict[str, Any]:
    rows, width = ready.shape
    values, ids = card.xp.zeros((rows, BEST), np.float32), card.xp.zeros((rows, BEST), np.int32)
    sums = card.xp.zeros(rows, np.float32)
    workspace = card.xp.zeros(card.module.top_workspace(rows, width, BEST), np.uint8)
    at = [card.pointer(array) for array in (values, ids, sums, workspace)]

    def launch(i: int, stream: int) -> None:
        card.module.top(views[i], rows, width, BEST, True, *at, stream=stream)

    launch(0, 0)
    card.synchronise()
    found = card.host(values)
    error = 0.0
    for r in range(rows):
        expected = _search.best_continuations(ready[r : r + 1], [0.0], BEST, True) or []
        error = max(error, float(np.abs(found[r] - [score for score, _, _ in expected]).max()))
    if not error < 1e-4:
        raise SystemExit(f"{label} differs from the host by {error:.3g}")
    return {"case": label, "us": card.microseconds(launch, len(views)), "bytes": rows * width * 4, "error": error}


def changed(card: Any, label: str, ready: Any, views: Any, held: Any) -> dict[str, Any]:
    rows, width = ready.shape
    wanted, lengths, zeros = (card.xp.full(rows, value, np.int32) for value in (1, 1, 0))
    entries = card.xp.asarray(np.array([~5], np.int32)), card.xp.asarray(np.array([-np.inf], np.float32))
    workspace = card.xp.zeros(card.module.log_softmax_workspace(rows, width), np.uint8)
    of_edit = [card.pointer(array) for array in (*entries, zeros, lengths, zeros)]
    of_sums = card.pointer(wanted), card.pointer(workspace)

    def launch(i: int, stream: int) -> None:
        card.module.log_softmax(views[i], rows, width, *of_sums, stream=stream)
        card.module.edit(views[i], rows, width, *of_edit, any_fills=False, stream=stream)

    launch(0, 0)
    card.synchronise()
    expected = ready.copy()
    _search.log_softmax_(expected)
    expected[:, 5] = -np.inf
    with np.errstate(invalid="ignore"):
        error = float(np.nanmax(np.abs(card.host(held[0]) - expected)))
    if not error < 1e-4:
        raise SystemExit(f"{label} differs from the host by {error:.3g}")
    return {"case": label, "us": card.microseconds(launch, len(views)), "bytes": 2 * rows * width * 4, "error": error}
