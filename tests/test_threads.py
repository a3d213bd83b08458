"""Threads: environment variables, one runner under several Python threads and after a fork, idle workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import available_isas, toy_folder
from stepping import logits_of

from pyllm import _C
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.cpu import CpuRunner
from pyllm.models import bind, build_program

pytestmark = pytest.mark.cpu_only("its threads")

IDS = [5, 9, 2, 77, 40, 8, 31] * 6


def make_runner(num_threads: int | None = 2) -> CpuRunner:
    checkpoint = open_checkpoint(toy_folder("llama"))
    program = build_program(checkpoint.config)
    return CpuRunner(program, bind(program, checkpoint), dtype="float32", num_threads=num_threads)


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYLLM_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"PYLLM_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "5,2"}, "5"),
        ({"PYLLM_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}, "1"),
    ],
)
def test_the_environment_sets_the_number_of_threads(variables: dict[str, str], threads: str) -> None:
    done = run_python("from pyllm import _C; print(_C.default_threads())", **variables)
    assert done.stdout.split() == [threads], done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYLLM_NUM_THREADS", "0"), ("PYLLM_NUM_THREADS", "many"), ("OMP_NUM_THREADS", "4 2"), ("PYLLM_ISA", "sse9")],
)
def test_a_malformed_variable_is_an_error_that_names_it(name: str, value: str) -> None:
    done = run_python("import numpy, pyllm.ops as ops; ops.relu(numpy.ones(3))", **{name: value})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pyllm.errors.")
    assert f"[{name}]" in last
    assert f"got '{value}'" in last


def test_pyllm_isa_forces_an_instruction_set() -> None:
    for isa in available_isas():
        assert run_python("from pyllm import _C; print(_C.isa())", PYLLM_ISA=isa).stdout.split() == [isa]


def test_python_threads_share_a_runner() -> None:
    runner = make_runner()
    expected = logits_of(runner, IDS)
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = logits_of(runner, IDS, number + 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 4
    for logits in found.values():
        np.testing.assert_array_equal(logits, expected)


FORK = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks in threaded processes: ours are made for it
import numpy as np
from stepping import logits_of
from test_threads import IDS, make_runner

runner = make_runner(3)
expected = logits_of(runner, IDS)
for generation in range(2):  # a child, and a child of the child
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert np.array_equal(logits_of(runner, IDS, 2), expected)
        os._exit(0)
    assert np.array_equal(logits_of(runner, IDS, 5), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_keeps_the_runner() -> None:
    done = run_python(FORK, PYTHONPATH=os.path.dirname(__file__))
    assert done.returncode == 0, done.stderr


def test_idle_workers_sleep() -> None:
    runner = make_runner(4)
    logits_of(runner, IDS)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1  # three spinning workers would take 0.4 on two processors


def test_processors() -> None:
    found = _C.processors()
    assert 1 <= found["cores"] <= found["affinity"] <= found["online"]
    assert found["quota"] >= 0
