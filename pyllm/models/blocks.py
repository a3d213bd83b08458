"""What the model files share: weights by checkpoint name, and Hugging Face's names of activations."""

from __future__ import annotations

from collections.abc import Sequence

from ..program.program import ActivationName, Matrix, Source, Vector

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


def vector(name: str, size: int) -> Vector:
    """A norm's weight or bias [size]."""
    return Vector(name, (size,), Source(name, (size,)))
