"""One step's input: the only thing that changes from step to step. Ragged, never padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 32  # tokens in one KV block (kBlockTokens in csrc/kernels.h)


@dataclass
class Batch:
    """S sequences, T rows in all (rows of one sequence are neighbours, positions ascending).

    ids          int32 [T]      token ids
    positions    int32 [T]      absolute positions, 0-based
    starts       int32 [S + 1]  sequence s owns rows starts[s] .. starts[s + 1]
    context      int32 [S]      keys in the cache once this step's rows are appended (last position + 1)
    block_table  int32 [S, B]   KV block of tokens 32*b .. 32*b + 31; entries past the context are ignored
    logit_rows   int32 [R]      rows whose output is wanted, ascending; may be empty

    Only where the program asks for them:
    token_types    int32 [T]      segment of each token (None: all 0)
    cross_table    int32 [S, X]   cross cache blocks of each sequence's source: written by an encoder, read by a decoder
    cross_context  int32 [S]      tokens of each source (an encoder's own context)
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    starts: NDArray[np.int32]
    context: NDArray[np.int32]
    block_table: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    token_types: NDArray[np.int32] | None = None
    cross_table: NDArray[np.int32] | None = None
    cross_context: NDArray[np.int32] | None = None


@dataclass
class Capture:
    """Intermediates that a step hands out besides its output. Ask by name, read afterwards.

    buffers     names of ops' outputs -> values[name]: float32 [rows, cols]
    attentions  names of attention ops' outputs -> weights[name]: for each sequence s float32 [H, rows of s, keys of s]
    """

    buffers: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ()
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    weights: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)


@dataclass
class Summary:
    """What a search needs of logits without reading them all: pass one to a step, read it afterwards.

    scales  float32 [R], >= 0, one for each output row; None: 1. With 0, which is cheap, sums are numbers of columns
    blocks  float32 [R, ceil(n / 64), 2]: of columns 64 * b .. 64 * b + 63 of each output row (of logits as the program
            gives them, before any filter) the maximum, and sum(exp((x - maximum) * scale)). The next step may reuse the
            array.
    """

    scales: NDArray[np.float32] | None = None

    blocks: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))


SUMMARY_COLUMNS = 64  # columns in one block of a summary (kPanel in csrc/kernels.h)


# How the next token of a row is chosen. temperature 0: the largest logit, the lowest id among equals; else drawn after
# top-k (0: off), top-p (1: off) and min-p (0: off) with the random number of (seed, seed_index, sequence, step).
CHOICE = np.dtype(
    [
        ("temperature", "f8"),
        ("top_p", "f8"),
        ("min_p", "f8"),
        ("seed", "u8"),
        ("top_k", "i4"),
        ("seed_index", "u4"),
        ("sequence", "u4"),
        ("step", "u4"),
    ]
)
UNCUT, CUT_BY_K, CUT = 0, 1, 2  # what is known of several: no cuts; top-p only where there is a top-k below n; nothing


@dataclass
class Edit:
    """What becomes of one row of logits: where `only` is given all is ruled out (-inf; NaN stays, for the choice to
    see) but those tokens, whose logits are 0; then values are added to tokens' logits; then tokens are ruled out."""

    only: tuple[int, ...] | None = None
    added: dict[int, float] = field(default_factory=dict)
    ruled_out: list[int] = field(default_factory=list)


class Best(NamedTuple):
    """The best tokens of each row, best first, the lowest id among equals; `normalised` ones with log-probabilities.

    values  float32 [R, count]
    ids     int32 [R, count]     -1: there are no more columns
    sums    float32 [R]          log of the sum of exponentials; NaN, and all ids -1: the row holds NaN or +inf
    """

    values: NDArray[np.float32]
    ids: NDArray[np.int32]
    sums: NDArray[np.float32]


class DeviceRows(Protocol):
    """Output rows [R, n] that are in a device's memory: choices come to the host, or, when asked, the rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> DeviceRows:
        """Some of the rows, side by side."""

    def host(self) -> NDArray[np.float32]:
        """A copy, C-contiguous, for the caller to overwrite."""

    @property
    def can_choose(self) -> bool:
        """Whether rows of this width can be chosen from and changed."""

    def can_rank(self, count: int) -> bool:
        """Whether `best` takes rows of this width and so many."""

    def penalise(self, rows: list[int], histories: list[list[int]], penalties: list[float]) -> None:
        """The repetition penalty, in place, on some rows: of the tokens of their histories."""

    def edit(self, rows: list[int], edits: Sequence[Edit]) -> None:
        """Changes some rows in place."""

    def log_softmax(self, rows: list[int], marks: Sequence[bool]) -> None:
        """Log-probabilities, in place, of some rows; one that holds NaN or +inf becomes NaN if `marks` says so, else
        stays as it is."""

    def choose(self, choices: NDArray[Any], cuts: int = CUT) -> NDArray[np.int32]:
        """A token for each of `choices` (CHOICE [R]; for a single row any number of them): what decode.sample and
        greedy search would choose on the host, but for rounding where probabilities add up; -1 where the row has no
        softmax, or NaN. cuts: UNCUT, CUT_BY_K or CUT."""

    def best(self, count: int, normalised: bool) -> Best:
        """The `count` best tokens of each row."""


class KvCache(Protocol):
    """Paged key/value storage of one session. Blocks are reference-counted; ids are small integers."""

    def allocate(self) -> int:
        """A fresh block with one reference. Raises OutOfMemoryError."""

    def share(self, block: int) -> None:
        """One more reference."""

    def release(self, block: int) -> None:
        """One reference less; the block is free at zero."""

    def references(self, block: int) -> int:
        """References held on a block."""

    def copy(self, block: int) -> int:
        """A fresh block with the same content (copy-on-write)."""

    @property
    def blocks_in_use(self) -> int:
        """Blocks with at least one reference."""


class Runner(Protocol):
    """A loaded network on some device: what the engine drives."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    def new_cache(self, program: str = "step") -> KvCache:
        """An empty cache of one program's own keys and values; caches are independent, a runner may serve many."""

    def new_cross_cache(self) -> KvCache:
        """An empty cache for what an encoder stores and a decoder's cross-attention reads."""

    def run(
        self,
        batch: Batch,
        cache: KvCache,
        *,
        program: str = "step",
        cross: KvCache | None = None,
        capture: Capture | None = None,
    ) -> NDArray[np.float32]:
        """One step of one program ("step" or "encode"); its output float32 [R, n]. The next run with the same cache may
        reuse the array: copy to keep. `cross`: the cross cache of batch.cross_table. Some runners also take
        `summary: Summary | None`, whose blocks they set: for programs whose output a linear gives, as logits are.

        A runner whose output is in a device's memory has a method `device_rows` that makes DeviceRows of it; it may
        also be an AheadRunner."""


class Tokens(Protocol):
    """What a step chose, on its way to the host."""

    def wait(self) -> NDArray[np.int32]:
        """int32 [R], of each row the token; -1: there was none to choose (see `DeviceRows.choose`). May be asked again,
        the array is the caller's to read only. Raises DeviceError."""


class AheadRunner(Runner, Protocol):
    """A runner that can take a step of which the tokens are not known yet: its device has chosen them itself."""

    @property
    def rows_ahead(self) -> int:
        """Most rows of such a step; 0: none now."""

    def run_ahead(
        self,
        batch: Batch,
        cache: KvCache,
        choices: NDArray[Any],
        cuts: int = CUT,
        *,
        cross: KvCache | None = None,
        after: Tokens | None = None,
    ) -> Tokens:
        """One step of "step", each row one sequence's next token and wanting logits, from which a token is chosen as
        `DeviceRows.choose` does. Nothing is waited for, but what must be; all arrays are the caller's again.

        choices: CHOICE [R]; cuts: UNCUT, CUT_BY_K or CUT. after: what the step before it chose, whose R rows were the
        same sequences one token earlier: it gives the ids, and `batch.ids` may hold anything. All else is as of this
        step: positions, context, blocks, and the `step` of every choice, one further than in the step before. A row
        without a token (-1) runs on with whatever token; nobody reads what it chooses.

        A sequence may end, and its blocks be released and given to another, before a step of its that was launched
        has run: steps run in the order of their launches, and with those of `run`.
        Raises what `run` raises; the caches' content, and `after`, are then as they were."""


def on_host(runner: Runner, output: Any) -> NDArray[np.float32]:
    """What a runner's `run` gave, as an array of this process."""
    wrap = getattr(runner, "device_rows", None)
    rows: NDArray[np.float32] = output if wrap is None else wrap(output).host()
    return rows
