"""Choosing tokens on a device (cuda/sample.cu, beam.cu, penalise.cu): the host's tokens, draws and continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_arrays import Device

from pyllm.decode import _search, filters
from pyllm.errors import ArrayError

VOCABULARIES = (1, 63, 1000, 50257)
GREEDY = (0.0, 0, 1.0, 0.0)
CUTS = [  # temperature, top-k, top-p, min-p
    GREEDY,
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 50, 1.0, 0.0),
    (0.8, 1, 1.0, 0.0),
    (1.0, 700, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.3, 0, 0.5, 0.0),
    (0.9, 40, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.6, 30, 0.95, 0.02),
    (1.0, 600, 0.99, 0.01),
]


def padded(rows: np.ndarray) -> np.ndarray:
    """As views have them: a multiple of 64 columns, NaN beyond the last."""
    out = np.full((len(rows), -(-rows.shape[1] // 64) * 64), np.nan, np.float32)
    out[:, : rows.shape[1]] = rows
    return out


def logits_of(n: int, seed: int) -> np.ndarray:
    """Rows of every kind: ordinary, peaked, flat, with many equal values, a few finite ones, all ruled out, broken."""
    random = np.random.RandomState(seed)
    rows = np.stack([random.standard_normal(n) * 3 for _ in range(9)]).astype(np.float32)
    rows[1] *= 4
    rows[2] = 0.25
    rows[3] = np.round(rows[3])
    rows[4, random.permutation(n)[n // 7 :]] = -np.inf
    rows[5] = -np.inf
    rows[5, n // 2] = -70.0
    rows[6] = -np.inf
    rows[7, n // 3] = np.nan
    rows[8, n // 5] = np.inf
    return rows


def choose(on: Device, rows: np.ndarray, cuts: Sequence[tuple[Any, ...]], step: int = 0, hint: int = 2) -> list[int]:
    """Tokens of rows with cuts each; sequence numbers are those of the rows."""
    choices = np.zeros(len(rows), on.module.choice_dtype())
    for i, one in enumerate(cuts):
        choices[i]["temperature"], choices[i]["top_k"], choices[i]["top_p"], choices[i]["min_p"] = one
        choices[i]["seed"], choices[i]["seed_index"], choices[i]["sequence"], choices[i]["step"] = 2**40 + 7, 3, i, step
    x, n = on.to_device(padded(rows)), rows.shape[1]
    held = on.to_device(choices.view(np.uint8))
    tokens = on.to_device(np.full(len(rows), -7, np.int32))
    workspace = on.to_device(np.full(on.module.choose_workspace(len(rows), n), 0xFF, np.uint8))
    at = [on.pointer(array) for array in (held, tokens, workspace)]
    on.module.choose((on.pointer(x), x.shape[1], "float32"), len(rows), n, *at, cuts=hint)
    return [int(token) for token in on.to_host(tokens)]


def on_host(rows: np.ndarray, cuts: Sequence[tuple[Any, ...]], step: int = 0) -> list[int]:
    tokens = []
    for i, one in enumerate(cuts):
        row = rows[i : i + 1]
        if one[0] == 0:
            tokens.append(_search.best_token(row))
        else:
            (token,) = _search.sample(row, *one, [_search.uniform(2**40 + 7, 3, i, step)])
            tokens.append(token)
    return tokens


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("n", VOCABULARIES)
def test_chooses_as_the_host(device: Device, n: int, cuts: Any) -> None:
    rows = logits_of(n, 1)
    for step in range(1 if n > 1000 else 6):
        assert choose(device, rows, [cuts] * len(rows), step) == on_host(rows, [cuts] * len(rows), step)


def test_rows_do_not_notice_each_other(device: Device) -> None:
    rows = np.concatenate([logits_of(1000, 2), logits_of(1000, 3)])[:12]
    together = choose(device, rows, CUTS)
    assert together == on_host(rows, CUTS)
    uncut = [1, 2, 0]
    assert choose(device, rows[uncut], [CUTS[i] for i in uncut], hint=0) == on_host(
        rows[uncut], [CUTS[i] for i in uncut]
    )
    with_k = [3, 9, 10]
    some = [CUTS[i] for i in (3, 8, 9)]
    assert choose(device, rows[with_k], some, hint=1) == on_host(rows[with_k], some)


def test_draws_have_the_distribution(device: Device) -> None:
    """Chi-square of 3000 draws under cuts: 11 tokens are left, 10 degrees of freedom; above 35 once in 10^4."""
    row = np.random.RandomState(5).standard_normal((1, 300)).astype(np.float32)
    kept = filters.top_k(row.copy(), 11)[0].astype(np.float64)
    expected = np.exp(kept - kept.max())
    expected *= 3000 / expected.sum()
    drawn = np.zeros(300)
    for step in range(60):
        for token in choose(device, np.repeat(row, 50, 0), [(1.0, 11, 1.0, 0.0)] * 50, step):
            drawn[token] += 1
    assert (drawn[expected == 0] == 0).all()
    some = expected > 0
    assert ((drawn[some] - expected[some]) ** 2 / expected[some]).sum() < 35


@pytest.mark.parametrize("count", [1, 8, 70])
@pytest.mark.parametrize("n", VOCABULARIES)
@pytest.mark.parametrize("normalise", [True, False])
def test_best_continuations(device: Device, n: int, count: int, normalise: bool) -> None:
    rows = logits_of(n, 4)
    x, total = device.to_device(padded(rows)), len(rows)
    values = device.to_device(np.zeros((total, count), np.float32))
    ids = device.to_device(np.zeros((total, count), np.int32))
    lse = device.to_device(np.zeros(total, np.float32))
    workspace = device.to_device(np.full(device.module.top_workspace(total, n, count), 0xFF, np.uint8))
    at = [device.pointer(array) for array in (values, ids, lse, workspace)]
    device.module.top((device.pointer(x), x.shape[1], "float32"), total, n, count, normalise, *at)
    found_values, found_ids, found_lse = (device.to_host(array) for array in (values, ids, lse))
    for r in range(total):
        expected = _search.best_continuations(rows[r : r + 1], [0.0], count, normalise)
        if expected is None:
            assert (found_ids[r] == -1).all()
            assert np.isnan(found_lse[r])
            continue
        size = len(expected)
        assert found_ids[r, :size].tolist() == [token for _, _, token in expected]
        np.testing.assert_allclose(found_values[r, :size], [score for score, _, _ in expected], rtol=1e-6, atol=2e-6)
        assert (found_ids[r, size:] == -1).all()
        np.testing.assert_allclose(found_lse[r], _search.log_sum_exp(rows[r]), rtol=1e-6)


def test_limits_are_said(device: Device) -> None:
    view = (0, 64, "float32")
    with pytest.raises(ArrayError, match="1 to 1024"):
        device.module.top(view, 1, 50, device.module.MOST_BEST + 1, True, 0, 0, 0, 0)
    with pytest.raises(ArrayError, match="columns"):
        device.module.choose(view, 1, device.module.MOST_CHOICES + 1, 0, 0, 0)


@pytest.mark.parametrize("n", [5, 5000])
def test_penalties(device: Device, n: int) -> None:
    random = np.random.RandomState(6)
    rows = random.standard_normal((3, n)).astype(np.float32)
    lengths = [0, 7, 900]
    ids = random.randint(0, n, sum(lengths)).astype(np.int32)
    offsets = [0, 0, 7]
    repetition, frequency, presence = [1.2, 1.0, 1.5], [0.5, 0.25, 0.0], [0.1, -0.3, 0.2]
    expected = rows.copy()
    for r in range(3):
        history = ids[offsets[r] : offsets[r] + lengths[r]]
        filters.repetition_penalty(expected[r : r + 1], [history.tolist()], np.float32(repetition[r]))
        counts = np.bincount(history, minlength=n).astype(np.float32)
        expected[r] -= counts * np.float32(frequency[r]) + (counts > 0) * np.float32(presence[r])
    x = device.to_device(padded(rows))
    held = [device.to_device(np.array(a, np.int32)) for a in (ids, offsets, lengths)]
    held += [device.to_device(np.array(a, np.float32)) for a in (repetition, frequency, presence)]
    device.module.penalise((device.pointer(x), x.shape[1], "float32"), 3, n, *(device.pointer(a) for a in held))
    np.testing.assert_allclose(device.to_host(x)[:, :n], expected, rtol=1e-6, atol=1e-6)
    again = device.to_device(padded(rows))
    device.module.penalise(
        (device.pointer(again), again.shape[1], "float32"), 3, n, *(device.pointer(a) for a in held[:3])
    )
    assert (device.to_host(again)[:, :n] == rows).all()


@pytest.mark.parametrize("n", [5, 4097])
@pytest.mark.parametrize("filled", [False, True])
def test_edits(device: Device, n: int, filled: bool) -> None:
    """Row 0 has none, row 1 is filled, row 2 has a column that is added to, then set, and ids past the vocabulary."""
    rows = np.random.RandomState(6).standard_normal((3, n)).astype(np.float32)
    rows[:, 1] = np.nan
    ids = [n - 1, 2, 3, ~0, ~(n - 1), ~1, ~n, n]
    values = [0.1, -np.inf, 2.5, -np.inf, 0.0, -np.inf, 9.0, 9.0]
    entries, fills = np.array([[0, 0], [0, 1], [0, 8]], np.int32), np.array([0, int(filled), 0], np.int32)
    expected = rows.copy()
    if filled:
        expected[1] = np.where(np.isnan(rows[1]), np.nan, np.float32(-np.inf))
    expected[1, n - 1] += np.float32(0.1)
    expected[2, 3] += np.float32(2.5)
    expected[2, [0, 1, 2]] = -np.inf
    expected[2, n - 1] = 0
    x = device.to_device(padded(rows))
    arrays = [np.array(ids, np.int32), np.array(values, np.float32), *entries.T, fills]
    held = [device.to_device(np.ascontiguousarray(a)) for a in arrays]
    at = [device.pointer(a) for a in held]
    device.module.edit((device.pointer(x), x.shape[1], "float32"), 3, n, *at, any_fills=filled)
    np.testing.assert_array_equal(device.to_host(x)[:, :n], expected)


@pytest.mark.parametrize("n", VOCABULARIES)
def test_log_softmax(device: Device, n: int) -> None:
    """The bits are those that `top` gives. Rows without a softmax become NaN, or stay as they are."""
    rows = np.concatenate([logits_of(n, 4), logits_of(n, 4)[-2:]])
    total, x = len(rows), device.to_device(padded(rows))
    wanted = device.to_device(np.array([1, 0, *[1] * (total - 4), 2, 2], np.int32))
    workspace = device.to_device(np.full(device.module.log_softmax_workspace(total, n), 0xFF, np.uint8))
    view = device.pointer(x), x.shape[1], "float32"
    device.module.log_softmax(view, total, n, device.pointer(wanted), device.pointer(workspace))
    found = device.to_host(x)[:, :n]
    np.testing.assert_array_equal(found[1], rows[1])
    for r in (r for r in range(total) if r != 1):
        expected = rows[r : r + 1].copy()
        if _search.log_softmax_(expected):
            np.testing.assert_allclose(found[r], expected[0], rtol=1e-6, atol=2e-6)
        elif r < total - 2:
            assert np.isnan(found[r]).all()
        else:
            np.testing.assert_array_equal(found[r], rows[r])
    again = device.to_device(padded(rows))
    held = [device.to_device(np.zeros((total, 8), np.int32)) for _ in range(3)]
    at = [*(device.pointer(a) for a in held), device.pointer(workspace)]
    device.module.top((device.pointer(again), again.shape[1], "float32"), total, n, 8, True, *at)
    values, ids = device.to_host(held[0]).view(np.float32), device.to_host(held[1])
    for r in (r for r in range(total) if r != 1):
        assert values[r, ids[r] >= 0].tolist() == found[r, ids[r][ids[r] >= 0]].tolist()


def test_advance(device: Device) -> None:
    """Rows of sequences go one step further, idle ones (sequence -1) stay."""
    live = np.arange(130) % 3 != 1
    choices = np.zeros(130, device.module.choice_dtype())
    choices["step"] = np.arange(130)
    choices["seed"] = 9
    arrays = [np.arange(130) + 7, np.where(live, np.arange(130), -1), *(np.arange(130) + i for i in range(3))]
    tokens, sequence, ids, positions, context = (device.to_device(a.astype(np.int32)) for a in arrays)
    held = device.to_device(choices.view(np.uint8))
    at = [device.pointer(array) for array in (sequence, ids, positions, context, held)]
    device.module.advance(device.pointer(tokens), 130, *at)
    assert (device.to_host(ids) == np.where(live, arrays[0], arrays[2])).all()
    assert (device.to_host(positions) == arrays[3] + live).all()
    assert (device.to_host(context) == arrays[4] + live).all()
    after = device.to_host(held).view(device.module.choice_dtype())
    assert (after["step"] == np.arange(130) + live).all()
    assert (after["seed"] == 9).all()
