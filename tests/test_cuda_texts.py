"""Texts of whole models on every device at hand (cuda_arrays.py): decoded ahead of what the host has read, as on the
CPU and as step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from cuda_runners import chosen_device  # noqa: F401

import pyllm
from pyllm.devices.cuda import CudaRunner
from pyllm.devices.cuda_rows import CudaRows

PROMPTS = [[5, 17, 80, 3, 9], [11, 4, 4, 60, 61, 62, 90] * 3, [7]]
WAYS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "seed": 3, "top_k": 0, "temperature": 1.1},
    {"do_sample": True, "seed": 4, "top_k": 20, "top_p": 0.9},
    {"do_sample": True, "seed": 5, "top_k": 0, "top_p": 0.9},
]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Of each step that chose for itself: whether its ids were known to the device only, and what was sent to it. No
    logits come to the host."""
    noted: list[tuple[bool, int]] = []
    run_ahead = CudaRunner.run_ahead

    def watched(runner: CudaRunner, *args: Any, after: Any = None, **rest: Any) -> Any:
        before = runner.sent_bytes
        tokens = run_ahead(runner, *args, after=after, **rest)
        noted.append((after is not None, runner.sent_bytes - before))
        return tokens

    host = CudaRows.host

    def fetched(rows: CudaRows) -> Any:
        assert len(rows) == 0, "logits were fetched"  # an encoder has none
        return host(rows)

    monkeypatch.setattr(CudaRunner, "run_ahead", watched)
    monkeypatch.setattr(CudaRows, "host", fetched)
    return noted


def ids_of(model: Any, **options: Any) -> list[list[int]]:
    results = model.generate(PROMPTS, max_new_tokens=33, min_length=0, **options)
    return [result.token_ids for result in results]


@pytest.mark.parametrize(
    ("name", "options"), [*(("llama", way) for way in WAYS), ("gpt2", WAYS[0]), ("t5", WAYS[0]), ("t5", WAYS[2])]
)
def test_texts_are_decoded_ahead(name: str, options: dict[str, Any], launches: list[tuple[bool, int]]) -> None:
    gpu, cpu = (pyllm.load(toy_folder(name), dtype="float32", device=device) for device in ("cuda", "cpu"))
    with gpu, cpu:
        runner = gpu._open_runner()
        found = ids_of(gpu, eos_token_id=[], **options)
        assert [len(ids) for ids in found] == [33] * 3
        ahead = [sent for follows, sent in launches if follows]
        assert len(ahead) == 31  # the prompts' step chooses a token, the first of the others knows its ids
        # A block more for some text when it has 32 tokens more; a bucket of its own in the attention's width.
        assert np.count_nonzero(ahead) <= len(PROMPTS) * 2
        assert runner.graphs > 0
        assert found == ids_of(cpu, eos_token_id=[], **options)

        # The token that some text has latest for the first time: it goes on alone when others have ended.
        end = max((ids.index(token), token) for ids in found for token in ids)[1]
        expected = ids_of(cpu, eos_token_id=[end], **options)
        assert ids_of(gpu, eos_token_id=[end], **options) == expected
        launches.clear()
        runner.set_buckets(False)
        assert ids_of(gpu, eos_token_id=[end], **options) == expected
        assert not launches


class Pieces:
    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: Any) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ids.append(-1)


def test_streamers_get_what_is_decoded_ahead(launches: list[tuple[bool, int]]) -> None:
    with pyllm.load(toy_folder("llama"), dtype="float32", device="cuda") as model:
        pieces = Pieces()
        result = model.generate(PROMPTS[0], max_new_tokens=20, eos_token_id=[], do_sample=False, streamer=pieces)
        assert pieces.ids == [*PROMPTS[0], *result.token_ids, -1]
        assert len(launches) == 19


def test_as_many_texts_at_once_as_the_largest_graph_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run_ahead = CudaRunner.run_ahead

    def watched(runner: CudaRunner, batch: Any, *args: Any, **rest: Any) -> Any:
        rows.append(len(batch.ids))
        return run_ahead(runner, batch, *args, **rest)

    monkeypatch.setattr(CudaRunner, "run_ahead", watched)
    prompts = [[3 + i % 50, 7] for i in range(140)]
    gpu, cpu = (pyllm.load(toy_folder("gpt2"), dtype="float32", device=device) for device in ("cuda", "cpu"))
    with gpu, cpu:
        found, expected = (model.generate(prompts, max_new_tokens=3, do_sample=False) for model in (gpu, cpu))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert max(rows) == 128
