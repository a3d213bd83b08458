"""`pyllm inspect`: what a checkpoint is and whether it runs here, without loading its weights."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import click

import pyllm

from ..checkpoint import Checkpoint, open_checkpoint
from ..devices.formats import choose_all, weight_bytes
from ..engine.loading import native_dtype
from ..errors import PyllmError
from ..models import BoundCheckpoint, bind, network_of
from ..program.batch import BLOCK_TOKENS
from ..program.network import Network
from ..program.tensors import Matrix
from . import texts

BYTES = {"float32": 4, "bfloat16": 2}
FORMS = (("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "int4"))  # dtype and quantization


@click.command()
@click.argument("model")
@click.option("--program/--no-program", "with_program", default=True, help="List the operations of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, with_program: bool, as_json: bool) -> None:
    """Show MODEL's family, parameters, memory by type, files, program, and what of it is supported. Exits with 1 when
    pyllm can't run it."""
    report = examine(pyllm.default_model() if model == "default" else model)
    program = report.pop("program", None)
    if as_json:
        click.echo(texts.to_json({**report, "program": program}))
    else:
        width = max(map(len, report))
        for name, value in report.items():
            shown = "\n".join(value) if isinstance(value, list) else str(value)
            click.echo(f"{name:<{width}}  " + shown.replace("\n", "\n" + " " * (width + 2)))
        if with_program and program is not None:
            click.echo(f"\n{program}", nl=False)
    if report["problems"] != "none":
        raise SystemExit(1)


def examine(model: Any) -> dict[str, Any]:
    """Everything `pyllm inspect` prints; problems are in it. Raises ModelNotFoundError, CheckpointError."""
    with open_checkpoint(model) as checkpoint:
        report: dict[str, Any] = {
            "folder": checkpoint.folder.name,
            "family": checkpoint.config.get("model_type"),
            "architecture": ", ".join(checkpoint.config.get("architectures") or ["not said"]),
            "stored": _stored(checkpoint),
        }
        try:
            network = network_of(checkpoint)
            report |= _network(network)
            report |= _quantized(network, bind(network, checkpoint))
        except PyllmError as error:
            return {**report, "problems": str(error)}
        tokenizer = _tokenizer(checkpoint)
        report["tokenizer"] = tokenizer
        report["problems"] = tokenizer if tokenizer.startswith("[") else "none"
        report["program"] = str(network)
        return report


def _stored(checkpoint: Checkpoint) -> list[str]:
    """One line for each type that tensors are stored in."""
    found: dict[str, tuple[int, int]] = {}
    for name in checkpoint.names():
        tensors, elements = found.get(checkpoint.dtype(name), (0, 0))
        found[checkpoint.dtype(name)] = tensors + 1, elements + prod(checkpoint.shape(name))
    return [f"{stored}: {tensors} tensors, {elements:,} elements" for stored, (tensors, elements) in found.items()]


def _network(network: Network) -> dict[str, Any]:
    matrices = {matrix: None for program in network.programs.values() for matrix in program.matrices()}
    vectors = {vector: None for program in network.programs.values() for vector in program.vectors()}
    weights = sum(prod(matrix.shape) for matrix in matrices)
    forms = {quantization or dtype: choose_all(network, dtype, quantization, None) for dtype, quantization in FORMS}
    parameters = weights + sum(_biases(matrix) for matrix in matrices) + sum(vector.shape[0] for vector in vectors)
    main = network.main
    cached = 2 * main.num_layers * main.num_kv_heads * main.head_dim
    report = {
        "kind": network.kind + (f", {network.head}" if network.head else ""),
        "parameters": f"{parameters:,}",
        "vocabulary": main.vocab_size,
        "positions": main.max_positions,
        "weights": [
            f"{name}: {_megabytes(sum(weight_bytes(matrix, each.format) for matrix, each in chosen.items()))}"
            for name, chosen in forms.items()
        ],
    }
    if network.step is not None:
        block = [f"{name}: {_megabytes(cached * size * BLOCK_TOKENS)}" for name, size in BYTES.items()]
        scales = cached // main.head_dim * 4  # a float32 for each key and each value
        block.append(f"int8: {_megabytes((cached + scales) * BLOCK_TOKENS)}")
        report[f"cache of {BLOCK_TOKENS} tokens"] = block
    return report


def _quantized(network: Network, tensors: BoundCheckpoint) -> dict[str, Any]:
    """How the matrices of a quantised checkpoint are stored, and what they are packed as; {} for others."""
    found: Counter[str] = Counter()
    size = 0
    for matrix, chosen in choose_all(network, native_dtype(network, tensors), None, tensors.kind).items():
        size += weight_bytes(matrix, chosen.format)
        kinds = {kind.label for source in matrix.sources if (kind := tensors.kind(source.name)) is not None}
        if kinds:
            how = "packed as they are, in" if chosen.codes else "dequantised and packed as"
            found[f"{' and '.join(sorted(kinds))}: {how} {chosen.format}"] += 1
    if not found:
        return {}
    lines = [f"{kind} ({count} {'matrix' if count == 1 else 'matrices'})" for kind, count in found.items()]
    return {"quantised": lines, "packed weights": _megabytes(size)}


def _biases(matrix: Matrix) -> int:
    return sum((source.end or prod(source.shape)) - source.begin for source in matrix.bias)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _tokenizer(checkpoint: Checkpoint) -> str:
    from ..tokenization import load_tokenizer

    try:
        return repr(load_tokenizer(checkpoint.folder, checkpoint.config))
    except PyllmError as error:
        return str(error)
