"""What quantising a model cost and gave: sizes, speed, drift. Written beside the weights as receipt.json."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.encoder_model import EncoderModel
from .drift import Drift

NEW_TOKENS, RUNS = 32, 3


@dataclass(frozen=True)
class Receipt:
    """model: where the source came from. to: "int8", "int4" or "int4-g128". calibrated: by error compensation.

    quantized, kept       matrices that became integers, and those that stay floats
    source_bytes, bytes   of the weight files
    source_speed, speed   new tokens a second of one sequence (encoders: texts a second), this machine, both in one run
    drift                 on the text that was given
    """

    model: str
    to: str
    calibrated: bool
    quantized: int
    kept: int
    source_bytes: int
    bytes: int
    speed_unit: str
    source_speed: float
    speed: float
    drift: Drift

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"change": self.drift.change}

    def __str__(self) -> str:
        found = self.drift
        lines = [
            f"{self.model} -> {self.to}" + (", errors compensated" if self.calibrated else ""),
            f"  size        {self.source_bytes / 1e6:,.1f} MB -> {self.bytes / 1e6:,.1f} MB "
            f"({self.quantized} matrices are integers, {self.kept} stay floats)",
            f"  speed       {self.source_speed:,.1f} -> {self.speed:,.1f} {self.speed_unit}",
        ]
        if found.perplexity is not None and found.reference_perplexity is not None:
            rise = 100 * (found.perplexity / found.reference_perplexity - 1)
            lines.append(
                f"  perplexity  {found.reference_perplexity:,.4f} -> {found.perplexity:,.4f} ({rise:+.2f} %), "
                f"over {found.tokens} tokens"
            )
        if found.divergence is not None:
            lines.append(f"  divergence  {found.divergence:.5f} nats a token (KL)")
        if found.angle is not None:
            lines.append(f"  angle       {found.angle:.6f} (1 - cos of hidden states), over {found.tokens} tokens")
        return "\n".join(lines)


def speed_of(model: Any, ids: list[int]) -> tuple[float, str]:
    """Median of a few runs on a text, and its unit."""
    if isinstance(model, EncoderModel):
        return 1 / median_seconds(lambda: model.forward([ids], output="hidden")), "texts/s"
    fixed = {"eos_token_id": [], "do_sample": False, "num_beams": 1}
    first = median_seconds(lambda: model.generate([ids], max_new_tokens=1, **fixed))
    whole = median_seconds(lambda: model.generate([ids], max_new_tokens=NEW_TOKENS + 1, **fixed))
    if whole <= first:  # disturbed: a rate with the prompt in it is lower, not absurd
        return (NEW_TOKENS + 1) / whole, "new tokens/s"
    return NEW_TOKENS / (whole - first), "new tokens/s"


def median_seconds(call: Callable[[], Any]) -> float:
    """Of RUNS calls, after one that is not timed."""
    call()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
