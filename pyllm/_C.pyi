"""Types of the compiled core (csrc/bindings)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

def isa() -> str: ...
def isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def default_threads() -> int: ...
def processors() -> dict[str, Any]: ...
def available_memory() -> int: ...
def read_bandwidth(bytes: int, num_threads: int) -> float: ...

class Checksum:
    def __init__(self, num_threads: int | None = None) -> None: ...
    def add(self, run: NDArray[np.uint8]) -> None: ...
    def read(self, file: str, offset: int, run: NDArray[np.uint8]) -> None: ...
    @property
    def value(self) -> int: ...

class Program:
    def __init__(self, *, kv_cache: str, cross_layers: int, cross_kv_heads: int, cross_head_dim: int) -> None: ...
    def add_matrix(
        self, name: str, parts: list[int], k: int, *, dtype: str, gated: bool, packed: bool, bias: bool
    ) -> int: ...
    def add_vector(self, n: int) -> int: ...
    def begin_routine(
        self, name: str, *, num_layers: int, num_kv_heads: int, head_dim: int, vocab_size: int, max_positions: int
    ) -> int: ...
    def add_buffer(self, selected: bool, cols: int) -> int: ...
    def embed(
        self,
        out: int,
        table: int,
        positions: int,
        position_offset: int,
        scale: float,
        types: int,
        by_position: bool,
    ) -> None: ...
    def rotary(self, out: int, inv_freq: list[float], scaling: float) -> None: ...
    def norm(self, out: int, x: int, rms: bool, weight: int, bias: int, eps: float, residual: int) -> None: ...
    def head_norm(
        self, out: int, x: int, rms: bool, slices: list[tuple[int, int, int, int, int]], eps: float
    ) -> None: ...
    def linear(
        self, out: int, x: int, weight: int, activation: str, residual: int, scale: float, softcap: float
    ) -> None: ...
    def head_linear(self, out: int, x: int, begin: int, weights: list[int]) -> None: ...
    def experts(
        self,
        out: int,
        x: int,
        router: int,
        gate_up: list[int],
        down: list[int],
        shared_gate_up: int,
        shared_down: int,
        top_k: int,
        activation: str,
        normalize: bool,
        residual: int,
    ) -> None: ...
    def attention(
        self,
        out: int,
        qkv: int,
        layer: int,
        num_heads: int,
        rope: int,
        scale: float,
        interleaved: bool,
        window: int,
        softcap: float,
        causal: bool,
        bias: int,
        bias_first: int,
        bias_span: int,
        slopes: list[float],
        c2p: int = ...,
        p2c: int = ...,
        c2p_index: list[int] = ...,
        p2c_index: list[int] = ...,
    ) -> None: ...
    def store_cross(self, kv: int, layer: int) -> None: ...
    def cross_attention(self, out: int, q: int, layer: int, num_heads: int, scale: float) -> None: ...
    def select(self, out: int, x: int) -> None: ...
    def set_output(self, buffer: int) -> None: ...

class KvCache:
    def allocate(self) -> int: ...
    def copy(self, block: int) -> int: ...
    def share(self, block: int) -> None: ...
    def release(self, block: int) -> None: ...
    def references(self, block: int) -> int: ...
    @property
    def blocks_in_use(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def huge_bytes(self) -> int: ...

class Executor:
    def __init__(self, program: Program, num_threads: int | None = None, isa: str | None = None) -> None: ...
    def pack(self, matrix: int, parts: list[NDArray[Any]], bias: list[Floats] = ...) -> None: ...
    def pack_codes(
        self,
        matrix: int,
        parts: list[tuple[NDArray[Any], Floats, NDArray[np.uint8] | None]],
        bias: list[Floats] = ...,
        group_size: int = 0,
    ) -> None:
        """Packs one int8 or int4 matrix from (codes [n, k], scales float32 [n, groups], zero points [n, groups]).

        codes: int8, or uint8 0..15 (int4), rows dense; weight = scale * (code - zero), zero 8 where there are none
        (int4), 0 (int8). int8 has one scale a row; int4 one for each group_size columns (0: k / groups), a multiple of
        the format's group, or one a row. Raises ArrayError for anything else; the matrix then counts as not loaded.
        """
    def set_sharing(self, repeat_rows: int, own_rows: int) -> None: ...
    def packed(self) -> memoryview: ...
    def checksum(self) -> int: ...
    def restore(self, file: str, offset: int, checksum: int) -> bool: ...
    def set_vector(self, id: int, values: Floats) -> None: ...
    def new_cache(self, routine: int, max_bytes: int = 0) -> KvCache: ...
    def new_cross_cache(self, max_bytes: int = 0) -> KvCache: ...
    def run(
        self,
        routine: int,
        ids: Ints,
        positions: Ints,
        starts: Ints,
        context: Ints,
        block_table: Ints,
        logit_rows: Ints,
        cache: KvCache,
        token_types: Ints | None = None,
        cross: KvCache | None = None,
        cross_table: Ints | None = None,
        cross_context: Ints | None = None,
        buffers: list[int] = ...,
        attentions: list[int] = ...,
        summary: bool = False,
        scales: Floats | None = None,
    ) -> tuple[Floats, list[Floats], list[list[Floats]], Floats]: ...
    def profile(self, enable: bool) -> None: ...
    def timings(self) -> list[list[tuple[int, float, float, float]]]: ...
    def memory(self) -> dict[str, tuple[int, int]]: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

class PackedMatrix:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def gated(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...

def pack(
    weights: list[NDArray[Any]],
    bias: list[Floats],
    gated: bool,
    dtype: str,
    packed: bool,
    isa: str | None = None,
    num_threads: int | None = None,
) -> PackedMatrix: ...
def pack_codes(
    parts: list[tuple[NDArray[Any], Floats, NDArray[np.uint8] | None]],
    bias: list[Floats],
    gated: bool,
    dtype: str,
    group_size: int,
    isa: str | None = None,
    num_threads: int | None = None,
) -> PackedMatrix: ...
def quantize(
    w: NDArray[Any], dtype: str, isa: str | None = None, num_threads: int | None = None
) -> tuple[NDArray[Any], Floats]:
    """What pack() makes of w [n, k] (float32, float16, bfloat16 as uint16): codes [n, k] and scales.

    int8: int8 codes, scales [n, 1]; int4, int4-g128: uint8 codes 0..15, scales [n, ceil(k / group)], float16 values.
    weight = scale * code, or scale * (code - 8).
    """

def matmul(
    x: Floats,
    w: PackedMatrix,
    activation: str,
    residual: Floats | None,
    scale: float,
    softcap: float,
    isa: str | None = None,
    num_threads: int | None = None,
) -> Floats: ...
def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
    bias: Floats | None,
    dtype: str,
    isa: str | None = None,
    num_threads: int | None = None,
) -> Floats: ...
def norm(
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    eps: float,
    rms: bool,
    isa: str | None = None,
    num_threads: int | None = None,
) -> Floats: ...
def activate(x: Floats, activation: str, isa: str | None = None, num_threads: int | None = None) -> Floats: ...
def gate(
    gate: Floats, up: Floats, activation: str, isa: str | None = None, num_threads: int | None = None
) -> Floats: ...
def softmax(x: Floats, isa: str | None = None, num_threads: int | None = None) -> Floats: ...
def rope(
    x: Floats, cos_sin: Floats, interleaved: bool, isa: str | None = None, num_threads: int | None = None
) -> Floats: ...
def embedding(ids: Ints, table: PackedMatrix, scale: float, num_threads: int | None = None) -> Floats: ...
