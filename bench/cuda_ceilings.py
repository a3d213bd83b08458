"""What this card can do, measured now: copy bandwidth (read plus written) and the bfloat16 GEMM rate, as one JSON line.

    python bench/cuda_ceilings.py

CuPy copies 2 GB; torch multiplies 8192 x 8192 x 8192 random matrices (zeros would run faster). Medians of 20.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import cupy


def milliseconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of run() on the current stream."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end))
    return statistics.median(times)


def copy_bandwidth(size: int = 2 << 30) -> float:
    """GB/s, bytes read plus bytes written."""
    source = cupy.random.randint(0, 255, size, dtype=cupy.uint8)
    target = cupy.empty_like(source)
    return 2 * size / milliseconds(lambda: cupy.copyto(target, source)) / 1e6


def gemm_rate(n: int = 8192) -> float | None:
    """TFLOP/s through torch; None without it."""
    try:
        import torch
    except ImportError:
        return None
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
    with stream:
        return 2 * n**3 / milliseconds(lambda: torch.matmul(a, b)) / 1e9


def main() -> None:
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    rate = gemm_rate()
    print(
        json.dumps(
            {
                "case": "ceilings",
                "device": properties["name"].decode(),
                "multiprocessors": properties["multiProcessorCount"],
                "l2_mb": properties["l2CacheSize"] >> 20,
                "copy_gb_s": round(copy_bandwidth(), 1),
                "gemm_bf16_tflops": None if rate is None else round(rate, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
