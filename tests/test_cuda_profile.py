"""Times of operations on a GPU (on every device at hand): each once a step, results unchanged, graphs as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cuda_runners import chosen_device, on_host, recorded_runner  # noqa: F401
from recorded_programs import Steps, some_ids
from test_cpu_programs import NETWORKS, whole_story

from pyllm.cli import main
from pyllm.program.listing import op_name
from pyllm.program.program import Linear

LLAMA = Path(__file__).parent / "fixtures" / "llama"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operation_is_timed(name: str) -> None:
    runner = recorded_runner(name, "bfloat16")
    assert runner.timings() == []
    expected = [on_host(rows) for rows in whole_story(runner)]
    runner.profile(True)
    for one, other in zip(whole_story(runner), expected, strict=True):
        np.testing.assert_array_equal(on_host(one), other)
    runner.profile(False)
    timings = runner.timings()
    whole_story(runner)
    assert runner.timings() == timings, "later steps are not"
    for kind, program in runner.network.programs.items():
        found = {timing.op: timing for timing in timings if timing.program == kind}
        steps = 2 if kind == "encode" else 5
        assert set(found) == {"set-up", *(op_name(op) for op in program.ops)}
        for op in program.ops:
            timing = found[op_name(op)]
            assert timing.calls == steps
            assert 0 <= timing.seconds < 60
            assert timing.waited == 0
            if isinstance(op, Linear):
                assert timing.bytes > 0
    runner.profile(True)
    assert runner.timings() == [], "from zero"


def test_graphs_stand_aside_and_come_back() -> None:
    runner = recorded_runner("decoder")
    steps = Steps(runner)
    steps.step({"x": some_ids(5, 1)})
    for token in (1, 2):
        steps.step({"x": [token]})
    assert runner.graphs == 1
    runner.profile(True)
    for token in (3, 4, 5):
        steps.step({"x": [token]})
    steps.step({"y": [1], "x": [6]})
    steps.step({"y": [2], "x": [7]})
    assert runner.graphs == 1, "none is made meanwhile"
    assert {timing.calls for timing in runner.timings()} == {5}
    runner.profile(False)
    steps.step({"y": [3], "x": [8]})
    assert runner.graphs == 2


def test_bench_shows_them() -> None:
    def bench(*more: str) -> str:
        sizes = ("--prompt", "4", "--new", "3", "--batch", "1", "--profile")
        result = CliRunner().invoke(main, ["bench", str(LLAMA), "--device", "cuda", *sizes, *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    report = json.loads(bench("--json"))
    assert (report["device"], report["isa"], report["read_gbs"]) == ("cuda", None, None), "not the processor's"
    ops = {record["op"]: record for record in report["profile"]}
    assert ops["layer*.qkv"]["calls"] > ops["embed"]["calls"] > 0
    assert ops["layer*.qkv"]["bytes"] > 0
    first = bench().splitlines()[0]
    assert first.startswith("decoder, ")
    assert ", cuda, " in first
