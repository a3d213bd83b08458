"""Which device the tests that load models run on: PYLLM_TEST_DEVICE, "cpu" (the default) or "cuda".

"cuda" is a GPU, or with PYLLM_CUDA_EMULATOR=1 the kernels compiled for the CPU. The tests are the same on each: a model
that is loaded without device= and num_threads= comes to the tested device. What is about the CPU itself says
`@pytest.mark.cpu_only("why")`; what takes an `isa` needn't say it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from pyllm.engine import loading

NAME = os.environ.get("PYLLM_TEST_DEVICE", "cpu")
if NAME not in ("cpu", "cuda"):
    raise pytest.UsageError(f"PYLLM_TEST_DEVICE must be cpu or cuda, got {NAME!r}")
ON_CUDA = NAME == "cuda"


def _chosen_device(device: Any, num_threads: int | None) -> str:
    """What "auto" means in tests; a number of threads asks for the processor, as it does for users."""
    if device != "auto":
        return str(device)
    return NAME if num_threads is None else "cpu"


loading._chosen_device = _chosen_device


def make_runner(
    network: Any, tensors: Any, *, dtype: str, num_threads: int | None = None, isa: str | None = None
) -> Any:
    """A compiled runner on the tested device; on the CPU where threads or an instruction set are named."""
    if ON_CUDA and num_threads is None and isa is None:
        from pyllm.devices.cuda import CudaRunner

        return CudaRunner(network, tensors, dtype=dtype)
    cpu = pytest.importorskip("pyllm.devices.cpu", reason="the C++ core is not built")
    return cpu.CpuRunner(network, tensors, dtype=dtype, num_threads=num_threads, isa=isa)


def assert_same_numbers(found: Any, expected: Any, dtype: str = "float32") -> None:
    """Of one sequence in steps of two sizes. The CPU gives the same bits. A GPU has kernels for few rows and for many
    (more than 64 in a step, more than 8 of a sequence) that sum in other orders: float32 differs by 1e-4 after a few
    layers, bfloat16, which rounds to 2^-9, by 2e-2 of the root mean square of all numbers."""
    found, expected = np.asarray(found), np.asarray(expected)
    if not ON_CUDA:
        assert found.tobytes() == expected.tobytes()
    elif dtype == "float32":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    else:
        assert ((found - expected) ** 2).mean() <= 2e-2**2 * (expected**2).mean()


def why_skipped(item: pytest.Item) -> str | None:
    """Why a test does not run on the tested device; None: it does."""
    if not ON_CUDA:
        return None
    mark = item.get_closest_marker("cpu_only")
    if mark is not None:
        return f"about the CPU: {mark.args[0]}"
    return "about the CPU: instruction sets" if "isa" in getattr(item, "fixturenames", ()) else None
