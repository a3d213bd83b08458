"""Does a model give here what it gives elsewhere? Compares it with recorded outputs or with a live transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyllm

from ..checkpoint import open_checkpoint
from ..engine.loading import load
from ..models import build_network
from .checks import compare
from .questions import Questions, questions_of
from .reference import Reference, read_reference, write_reference
from .report import Report

__all__ = ["Questions", "Reference", "Report", "read_reference", "verify", "write_reference"]

TOLERANCES = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.3, "float64": 1e-4}
QUANTIZED = 0.05  # at least, where activations are integers of 16 bits


def verify(
    model: str | os.PathLike[str],
    reference: str | os.PathLike[str] | Reference | None = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    num_threads: int | None = None,
    tolerance: float | None = None,
    texts: Sequence[str] = (),
    save: str | os.PathLike[str] | None = None,
) -> Report:
    """Tokenization, logits, greedy and beam texts of a model beside a reference's.

    model       a folder or a Hub id
    reference   a folder or JSON file with recorded outputs (see reference.py), or None: transformers is asked now, in
                float32, which must be installed with PyTorch
    dtype, device, num_threads   how pyllm runs the model (see `pyllm.load`)
    tolerance   largest difference of logits that agrees, in units of their standard deviation where that is above 1;
                None: 1e-4 in float32, 0.05 in float16 or of quantised weights, 0.3 in bfloat16, where texts may
                differ from the reference's and still agree
    texts       more texts to ask a live transformers about
    save        a folder to write the reference to, for later runs

    Raises InvalidOptionError (no reference to be had, or not one of this kind of model) and what `pyllm.load` raises.
    """
    with open_checkpoint(model) as checkpoint:
        folder, config = checkpoint.folder, checkpoint.config
    network = build_network(config)
    if reference is None:
        from .live import ask_transformers

        reference = ask_transformers(folder, config, questions_of(folder, config, network, texts))
    elif not isinstance(reference, Reference):
        reference = read_reference(Path(reference), network.kind)
    if save is not None:
        write_reference(Path(save), reference)
    with load(folder, dtype=dtype, device=device, num_threads=num_threads) as loaded:
        limit = TOLERANCES[loaded.dtype] if tolerance is None else tolerance
        if tolerance is None and loaded.quantization is not None:
            limit = max(limit, QUANTIZED)
        checks = compare(loaded, reference, limit)
        return Report(
            model=str(model),
            family=loaded.network.family,
            kind=loaded.network.kind + (f", {loaded.network.head}" if loaded.network.head else ""),
            runs_as=f"{loaded.dtype} on {loaded.device}",
            reference=reference.origin,
            version=pyllm.__version__,
            tolerance=limit,
            checks=checks,
        )
