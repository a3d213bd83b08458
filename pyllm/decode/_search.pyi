"""Types of the compiled search functions. Each row is contiguous float32; a name ending in _ overwrites its row."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

def argmax(row: NDArray[np.float32]) -> int:
    """Index of the largest value, the lowest among equals; -1 when the row holds NaN."""

def log_sum_exp(row: NDArray[np.float32]) -> float:
    """log(sum(exp(row))); NaN when the row holds NaN or +inf, -inf when it is all -inf."""

def log_softmax_(rows: NDArray[np.float32]) -> bool:
    """float32 [n, V], each row minus its log_sum_exp. False when some row has none (it is then left as it was)."""

def top_k(row: NDArray[np.float32], k: int) -> tuple[list[float], list[int]]:
    """The k largest values and their indices, best first, lower indices first among equals."""

def best_continuations(
    rows: NDArray[np.float32], running: list[float], k: int, normalise: bool
) -> list[tuple[float, int, int]] | None:
    """(score, row, token) of the k best of running[r] + rows[r, token], best first, ties by row and token.

    `normalise` takes rows as logits and uses their log-probabilities. None when a row holds NaN or +inf.
    """

def penalise_(row: NDArray[np.float32], tokens: Iterable[int], penalty: float) -> None:
    """Repetition penalty on the named tokens, once each however often named; ids past the row are passed over."""

def cut_top_k_(rows: NDArray[np.float32], k: int) -> None:
    """float32 [n, V]: -inf in each row for all below the k-th largest, k >= 1; what equals it stays."""

def uniform(seed: int, seed_index: int, sequence: int, step: int, draw_index: int = 0) -> float:
    """A random number in [0, 1) that depends on its arguments only (Philox4x32-10)."""

def sample_(row: NDArray[np.float32], top_k: int, top_p: float, min_p: float, u: float) -> int:
    """The token at u in [0, 1) of the cumulative softmax, tokens ascending, after top-k (0: off), top-p (1: off) and
    min-p (0: off); -1 when the row has no softmax (NaN, +inf, all -inf)."""

def draw_without_replacement(row: NDArray[np.float32], uniforms: list[float]) -> list[int] | None:
    """len(uniforms) distinct indices, each drawn from the softmax of those left; None as for sample_."""

def num_kernels() -> int:
    """Instruction sets the row kernels exist for here."""

def use_kernels(index: int) -> None:
    """Chooses among them (the last is the default). All but the first, which lacks fused multiply-add, give
    the same bits; for tests."""
