"""Runs a loaded model on what a reference was asked, and compares the answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode.options import GenerationOptions
from ..engine.encoder_model import EncoderModel
from ..engine.generating import GeneratingModel
from ..engine.language_model import LanguageModel
from ..engine.model import Model
from ..engine.results import Generation
from ..engine.seq2seq_model import Seq2SeqModel
from ..errors import PyllmError
from ..tokenization import Tokenizer
from .measure import difference
from .questions import start_token
from .reference import Case, Pass, Reference
from .report import FAIL, PASS, SKIPPED, Check, Row

Floats = NDArray[np.float32]

NAMES = {"logits": "logits", "encoded": "encoder", "output": "head", "hidden": "hidden states"}


def compare(model: Model, reference: Reference, tolerance: float) -> list[Check]:
    """Every check that the reference has something for, and those it could not be asked, with the reason.

    tolerance: see `verify`.
    """
    checks = [Check("tokenization", _tokenization(model, reference))] if reference.texts else []
    checks += [Check(name, note=reason) for name, reason in reference.missing.items()]
    outputs: dict[str, list[Row]] = {}
    for number, each in enumerate(reference.passes, 1):
        for name, row in _outputs(model, each, f"input {number}, {_tokens(each.length)}", tolerance).items():
            outputs.setdefault(NAMES[name], []).append(row)
    checks += [Check(name, rows, _worst(rows, name in ("logits", "head"))) for name, rows in outputs.items()]
    if isinstance(model, GeneratingModel):
        for name, picks in (("greedy", _is_greedy), ("beams", lambda case: not _is_greedy(case))):
            rows = [_generated(model, case, tolerance) for case in reference.cases if picks(case)]
            checks.append(Check(name, rows, _ties(rows)))
    return [check for check in checks if check.rows or check.note]


def _tokens(count: int) -> str:
    return f"{count} token" + ("s" if count != 1 else "")


def _is_greedy(case: Case) -> bool:
    return bool(case.options.get("num_beams", 1) == 1)


def _ties(rows: Sequence[Row]) -> str:
    """How many rows agree but for choices that rounding makes, and how many are not judged."""
    ties = sum(row.verdict == PASS and bool(row.detail) for row in rows)
    skipped = sum(row.verdict == SKIPPED for row in rows)
    parts = [f"{ties} near tie" + ("s" if ties != 1 else "")] if ties else []
    return ", ".join([*parts, f"{skipped} differ, not judged in bfloat16"] if skipped else parts)


def _tokenization(model: Model, reference: Reference) -> list[Row]:
    return [_tokenized(lambda: model.tokenizer, text, ids) for text, ids in reference.texts]


def _tokenized(tokenizer: Callable[[], Tokenizer], text: str, expected: list[int]) -> Row:
    label = ascii(text) if len(text) < 40 else f"{text[:36]!a}..."
    try:
        found = tokenizer().encode(text)
    except PyllmError as error:
        return Row(label, FAIL, str(error))
    if found == expected:
        return Row(label, PASS)
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), -1)
    at = min(len(found), len(expected)) if at < 0 else at
    theirs, ours = expected[at : at + 4], found[at : at + 4]
    return Row(
        label, FAIL, f"token {at} and on: {theirs} expected, got {ours}; {len(expected)} and {len(found)} in all"
    )


def _outputs(model: Model, each: Pass, label: str, tolerance: float) -> dict[str, Row]:
    """A row for each output of a pass."""
    rows = {}
    for name, expected in each.outputs.items():
        if name == "output" and isinstance(model, EncoderModel) and model.head is None:
            continue  # the hidden states once more
        try:
            found = _run(model, name, each)
        except PyllmError as error:
            rows[name] = Row(label, FAIL, str(error))
            continue
        if found.shape != expected.shape:
            rows[name] = Row(label, FAIL, f"shape {list(expected.shape)} expected, got {list(found.shape)}")
            continue
        apart = difference(found, expected)
        limit = tolerance * max(1.0, apart.deviation)
        detail = "" if apart.max_abs <= limit else f"max |\u0394| {apart.max_abs:.2e}, at most {limit:.1e} agrees"
        rows[name] = Row(label, FAIL if detail else PASS, detail, apart)
    return rows


def _run(model: Any, name: str, each: Pass) -> Floats:
    """What the model gives for the output of this name."""
    if isinstance(model, EncoderModel):
        types = each.inputs.get("type_ids")
        output = "hidden" if name == "hidden" or model.head is None else "head"
        return model.forward([each.inputs["ids"]], None if types is None else [types], output=output)[0]
    if isinstance(model, Seq2SeqModel):
        source = each.inputs["source"]
        if name == "encoded":
            return model.encode(source)
        if model.network.head is not None:  # a classifier reads the source again, and its last row counts
            labels: Floats = model.logits([start_token(model.config), *source[:-1]], source=source)[-1]
            return labels
        return model.logits(each.inputs["decoder"], source=source)
    logits: Floats = model.logits(each.inputs["prompt"])
    return logits


def _worst(rows: Sequence[Row], ranked: bool) -> str:
    """The largest differences of all rows, in words. ranked: whether the order of entries means anything."""
    found = [row.difference for row in rows if row.difference is not None]
    if not found:
        return ""
    largest = max(found, key=lambda each: math.inf if math.isnan(each.max_abs) else each.max_abs)
    mean = float(np.mean([each.mean_abs for each in found]))
    parts = [f"max |\u0394| {largest.max_abs:.2e}", f"mean {mean:.1e}"]
    if ranked:
        parts += [f"top-{k} {100 * min(getattr(each, f'top{k}') for each in found):.4g} %" for k in (1, 5)]
    return ", ".join(parts)


def _generated(model: GeneratingModel, case: Case, tolerance: float) -> Row:
    try:
        result = _generate(model, case)
    except PyllmError as error:
        return Row(case.name, FAIL, str(error))
    found = [sequence.token_ids for sequence in result.sequences]
    apart = 0.0
    if case.scores is not None:
        scores = [math.nan if sequence.score is None else sequence.score for sequence in result.sequences]
        same = len(scores) == len(case.scores)
        apart = float(np.abs(np.array(scores) - case.scores).max()) if same else math.inf
    if found == case.token_ids:
        if apart <= tolerance:
            return Row(case.name, PASS)
        detail = f"the same tokens, but scores differ by {apart:.2e}, at most {tolerance:.1e} agrees"
        return _unlike(model, case, detail)
    which = next((i for i, (a, b) in enumerate(zip(found, case.token_ids, strict=False)) if a != b), 0)
    ours, theirs = found[which], case.token_ids[which] if which < len(case.token_ids) else []
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    place = f"text {which + 1} of {len(found)}: token {at} is {_at(ours, at)}, expected {_at(theirs, at)}"
    if case.scores is not None:
        tie, gap = apart <= tolerance, f"scores {apart:.1e} apart"
    else:
        logits, deviation = _gap(model, case, ours, theirs, at)
        tie, gap = logits <= 2 * tolerance * max(1.0, deviation), f"logits {logits:.1e} apart"
    return Row(case.name, PASS, f"near tie: {place}, {gap}") if tie else _unlike(model, case, f"{place}, {gap}")


def _unlike(model: GeneratingModel, case: Case, detail: str) -> Row:
    """A text that differs: a failure, but of bfloat16, which may well write another one than a float32 reference."""
    if model.dtype == "bfloat16":
        return Row(case.name, SKIPPED, f"not judged in bfloat16: {detail}")
    return Row(case.name, FAIL, detail)


def _generate(model: Any, case: Case) -> Generation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options without effect: they are the reference's
        options = GenerationOptions.build({}, dict(case.options))
        results: list[Generation] = model.run([case.prompt], options)
        return results[0]


def _gap(model: Any, case: Case, ours: list[int], theirs: list[int], at: int) -> tuple[float, float]:
    """How far apart the logits of the two tokens lie where texts part, and the deviation of the logits there."""
    if at >= len(ours) or at >= len(theirs):
        return math.inf, 0.0
    if isinstance(model, LanguageModel):
        row = model.logits([*case.prompt, *ours[:at]])[-1]
    else:
        start = case.options.get("decoder_start_token_id", start_token(model.config))
        row = model.logits([start, *ours[:at]], source=case.prompt)[-1]
    return abs(float(row[ours[at]]) - float(row[theirs[at]])), float(row.std())


def _at(tokens: list[int], at: int) -> str:
    return str(tokens[at]) if at < len(tokens) else "the end"
