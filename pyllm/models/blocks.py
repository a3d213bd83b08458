"""What the model files share: weights by checkpoint name, and Hugging Face's names of activations."""

from __future__ import annotations

from collections.abc import Sequence

from ..program.program import ActivationName
from ..program.tensors import Matrix, Source, Vector

# Hugging Face's ACT2FN names of each function that the kernels have.
ACTIVATIONS: dict[str, ActivationName] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}


def table(name: str, rows: int, cols: int) -> Matrix:
    """An embedding table or head [rows, cols], stored under `name`.weight."""
    return Matrix(f"{name}.weight", (rows, cols), (Source(f"{name}.weight", (rows, cols)),))


def matrix(name: str, outputs: int, inputs: int, *, bias: bool = False) -> Matrix:
    """torch.nn.Linear: weight [outputs, inputs] and perhaps bias [outputs]."""
    return joined(name, [(name, outputs)], inputs, bias=bias)


def conv1d(name: str, outputs: int, inputs: int) -> Matrix:
    """transformers' Conv1D (GPT-2): weight stored [inputs, outputs], with bias [outputs]."""
    weight = Source(f"{name}.weight", (inputs, outputs), transposed=True)
    return Matrix(name, (outputs, inputs), (weight,), (Source(f"{name}.bias", (outputs,)),))


def joined(
    name: str, parts: Sequence[tuple[str, int]], inputs: int, *, bias: bool = False, gated: bool = False
) -> Matrix:
    """Several torch.nn.Linear over the same input as one matrix; `parts`: (checkpoint name, outputs) of each."""
    weights = tuple(Source(f"{part}.weight", (outputs, inputs)) for part, outputs in parts)
    biases = tuple(Source(f"{part}.bias", (outputs,)) for part, outputs in parts) if bias else ()
    return Matrix(name, (sum(outputs for _, outputs in parts), inputs), weights, biases, gated)


def rearranged(name: str, stored: int, inputs: int, pieces: Sequence[tuple[int, int]], *, bias: bool = False) -> Matrix:
    """A torch.nn.Linear of `stored` outputs, whose rows are taken in another order: `pieces` [begin, end)."""
    weights = tuple(Source(f"{name}.weight", (stored, inputs), begin=begin, end=end) for begin, end in pieces)
    biases = tuple(Source(f"{name}.bias", (stored,), begin=begin, end=end) for begin, end in pieces) if bias else ()
    return Matrix(name, (sum(end - begin for begin, end in pieces), inputs), weights, biases)


def grouped_qkv(name: str, inputs: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False) -> Matrix:
    """A fused projection stored group by group, each the query heads of one key/value head, that key, that value:
    NeoX, BLOOM, Falcon, GPTBigCode. As a matrix whose outputs are all queries, then all keys, then all values."""
    group = heads // kv_heads * head_dim
    starts = range(0, kv_heads * (group + 2 * head_dim), group + 2 * head_dim)
    queries = [(start, start + group) for start in starts]
    keys = [(start + group, start + group + head_dim) for start in starts]
    values = [(start + group + head_dim, start + group + 2 * head_dim) for start in starts]
    pieces = queries + keys + values if kv_heads > 1 else [(0, group + 2 * head_dim)]
    return rearranged(name, (heads + 2 * kv_heads) * head_dim, inputs, pieces, bias=bias)


def norm(name: str, size: int) -> tuple[Vector, Vector]:
    """torch.nn.LayerNorm: weight and bias [size]."""
    return vector(f"{name}.weight", size), vector(f"{name}.bias", size)


def vector(name: str, size: int, *, offset: float = 0.0) -> Vector:
    """A norm's weight or bias [size], plus `offset` (Gemma's norms multiply by 1 + weight)."""
    return Vector(name, (size,), Source(name, (size,)), offset)
