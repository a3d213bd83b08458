"""Types of the compiled search functions. Each row is contiguous float32; a name ending in _ overwrites its row.

`blocks` are the rows' summary (program/batch.py), float32 [n, ceil(V / 64), 2]; None: the rows are read. The results
have the same bits either way. Where a summary's sums are of exp((x - maximum) * scale), scale is named.
"""

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

def best_token(rows: NDArray[np.float32], blocks: NDArray[np.float32] | None = None) -> int:
    """`argmax` of the first of [n, V] rows."""

def best_continuations(
    rows: NDArray[np.float32],
    running: list[float],
    k: int,
    normalise: bool,
    blocks: NDArray[np.float32] | None = None,
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

def sample(
    rows: NDArray[np.float32],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniforms: list[float],
    blocks: NDArray[np.float32] | None = None,
    scale: float = 1.0,
) -> list[int]:
    """For each row [n, V] the token at u in [0, 1) of the cumulative softmax of row / temperature, tokens ascending,
    after top-k (0: off), top-p (1: off) and min-p (0: off); -1 when the row has no softmax (NaN, +inf, all -inf)."""

class Weights:
    """A distribution over tokens, by `weights`."""

    def draw(self, u: float) -> int:
        """The token at u in [0, 1) of the cumulative distribution, tokens ascending."""

    def probability(self, token: int) -> float: ...
    def draw_beyond(self, other: Weights, u: float) -> int:
        """The token at u of max(p - q, 0), normalised, p being this distribution and q the other one."""

def weights(row: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float) -> Weights | None:
    """The distribution that `sample` draws from; None when the row has no softmax."""

class Lanes:
    """Sequences whose every step is a choice from their logits and nothing else, advanced together."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add(
        self,
        row: int,
        tokens: list[int],
        ends: frozenset[int],
        prompt_length: int,
        max_length: int,
        cuts: tuple[float, int, float, float] | None,
        seed: int,
        seed_index: int,
        sequence: int,
    ) -> None:
        """A sequence whose logits are row `row`: its tokens so far (the list grows by each step's token), its end
        tokens, and what is drawn with: (temperature, top_k, top_p, min_p), None for the most likely token."""

    def advance(
        self,
        rows: NDArray[np.float32],
        blocks: NDArray[np.float32] | None = None,
        scales: NDArray[np.float32] | None = None,
    ) -> tuple[list[int] | None, list[int]]:
        """Every sequence's next token, and which of them (by index) have ended. (None, [index]) when that one's row has
        no softmax, or holds NaN; then nothing has changed. scales [n]: those of the blocks' sums, None: 1."""

    def choices(self, out: NDArray[np.uint8], n: int) -> int:
        """What `advance` would choose by, for a device to do: writes the entries of the sequences' rows, of n columns,
        into the bytes of a program.batch.CHOICE array, and returns what is known of them: UNCUT, CUT_BY_K or CUT."""

    def take(self, chosen: NDArray[np.int32]) -> tuple[list[int] | None, list[int]]:
        """`advance` by tokens chosen elsewhere, one a row; negative: there was none."""

def draw_without_replacement(row: NDArray[np.float32], uniforms: list[float]) -> list[int] | None:
    """len(uniforms) distinct indices, each drawn from the softmax of those left; None as for sample_."""

def num_kernels() -> int:
    """Instruction sets the row kernels exist for here."""

def use_kernels(index: int) -> None:
    """Chooses among them (the last is the default). All but the first, which lacks fused multiply-add, give
    the same bits; for tests."""
