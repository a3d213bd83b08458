"""`quantize`: from a checkpoint to a folder whose matrices are integers, with a receipt of what that cost."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _C
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.codes import floats_of
from ..engine.encoder_model import EncoderModel
from ..engine.language_model import LanguageModel
from ..engine.loading import load
from ..engine.model import Model
from ..errors import CheckpointError, InvalidOptionError
from ..models import BoundCheckpoint, bind, network_of
from .compensate import compensated
from .drift import Drift, drift
from .folder import GROUPS, SafetensorsWriter, copy_side_files, layout_of, quantization_config, tensors_of
from .moments import chunks, moments
from .plan import Planned, plan
from .receipt import Receipt, speed_of

PIECE = 256  # tokens of a text that are read together
MOST_TOKENS = 4096  # of the text that drift is measured on
CALIBRATION_TOKENS = 16384
# Relative change of perplexity (or what Drift.change says) above which nothing is written without force.
LIMITS = {"int8": 0.01, "int4": 0.10, "int4-g128": 0.15}

Progress = Callable[[str], None]


class TooFarError(InvalidOptionError):
    """The quantised model is further from its source than the limit allows."""

    def __init__(self, message: str, receipt: Receipt) -> None:
        super().__init__(message)
        self.receipt = receipt


def sample_text() -> Path:
    """The text that drift is measured on by default: the beginning of "Alice's Adventures in Wonderland" (1865)."""
    return Path(__file__).parent.parent / "assets" / "sample.txt"


def quantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str = "int8",
    calibrate: str | list[int] | None = None,
    text: str | list[int] | None = None,
    max_change: float | None = None,
    force: bool = False,
    num_threads: int | None = None,
    progress: Progress = lambda _: None,
    **source: Any,
) -> Receipt:
    """Writes `model` (a folder or Hub id) with integer matrices into the new folder `output`.

    to            "int8" (one scale an output), "int4" (one every 32 inputs), "int4-g128" (one every 128)
    calibrate     a text or its token ids: rounding errors are made up for by later inputs, weighed by what matmuls
                  read on it (decoders and encoders)
    text          what drift from the source is measured on, as text or token ids; None: sample_text()
    max_change    the largest Drift.change accepted; None: LIMITS[to]
    force         write it all the same
    source        options of load() that say where the model comes from: revision, cache_dir, token, local_files_only
    progress      is told in words what happens

    Returns the receipt, which is in receipt.json too. Raises TooFarError (nothing is written), InvalidOptionError, and
    what load() raises.
    """
    target = Path(output)
    limit = _checked(to, target, max_change, force)
    checkpoint = open_checkpoint(model, **source)
    with checkpoint:
        network = network_of(checkpoint)
        bound = bind(network, checkpoint)
        planned = plan(network)
        if any(bound.kind(name) is not None for name in planned):
            raise CheckpointError(f"[quantize] {model} is quantised already; start from the model it was made of")
        options: dict[str, Any] = {"num_threads": num_threads}
        with load(checkpoint.folder, **options) as reference:
            ids = _ids(reference, sample_text().read_text("utf-8") if text is None else text, "text")
            calibration = _calibration(reference, calibrate)
            staging = _staging(target)
            try:
                progress("quantising")
                codes = _codes(bound, planned, to, reference, calibration)
                _write(checkpoint, bound, planned, codes, to, staging)
                progress("measuring")
                with load(staging, **options) as made:
                    receipt = _receipt(str(model), to, made, reference, planned, ids, staging, calibrate is not None)
                if receipt.drift.change > limit and not force:
                    raise TooFarError(
                        f"[quantize] the result may be at most {limit:.3g} from its source, it is "
                        f"{receipt.drift.change:.3g} away; try --calibrate, a wider format, or --force to keep it",
                        receipt,
                    )
                (staging / "receipt.json").write_text(json.dumps(receipt.as_dict(), indent=2) + "\n")
                _move(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return receipt


def _checked(to: str, target: Path, max_change: float | None, force: bool) -> float:
    problems = []
    if to not in GROUPS:
        problems.append(f"to must be one of {', '.join(GROUPS)}, got {to!r}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problems.append(f"output must be a new or empty folder, got {target}")
    if max_change is not None and not max_change >= 0:
        problems.append(f"max_change must be a number of at least 0, got {max_change!r}")
    if problems:
        raise InvalidOptionError("[quantize] " + "; ".join(problems))
    return LIMITS[to] if max_change is None else max_change


def _ids(model: Model, text: str | list[int], what: str) -> list[int]:
    ids = model.tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else text
    if len(ids) < 2:
        raise InvalidOptionError(f"[quantize] {what} must be at least two tokens long, got {len(ids)}; give more")
    return [int(i) for i in ids]


def _pieces(model: Model, ids: list[int], most: int) -> list[list[int]]:
    return chunks(ids, min(PIECE, model.max_positions or PIECE), most)


def _calibration(reference: Model, text: str | list[int] | None) -> list[list[int]] | None:
    if text is None:
        return None
    if not isinstance(reference, LanguageModel | EncoderModel):
        raise InvalidOptionError("[quantize] calibrate works for decoders and encoders; leave it out for this model")
    return _pieces(reference, _ids(reference, text, "calibrate"), CALIBRATION_TOKENS)


def _codes(
    bound: BoundCheckpoint, planned: dict[str, Planned], to: str, reference: Model, texts: list[list[int]] | None
) -> Iterator[tuple[str, NDArray[Any], NDArray[np.float32]]]:
    """(canonical name, codes, scales) of every planned tensor, each once."""
    for name, each in planned.items():
        if texts is None or each.input is None:
            yield name, *_C.quantize(_weights(bound, name, each), to)
    if texts is None:
        return
    readers: dict[tuple[str, str], list[str]] = {}
    for name, each in planned.items():
        if each.input is not None:
            readers.setdefault(each.input, []).append(name)
    buffers = {key: planned[names[0]].inputs for key, names in readers.items()}
    for sums in moments(reference.runner, texts, buffers):
        for key, second in sums.items():
            for name in readers[key]:
                yield name, *compensated(_weights(bound, name, planned[name]), second, to)


def _weights(bound: BoundCheckpoint, name: str, planned: Planned) -> NDArray[np.float32]:
    """float32 [outputs, inputs]."""
    array = floats_of(bound.tensor(name))
    weights = np.ascontiguousarray(array.T if planned.transposed else array)
    bound.release(name)
    return weights


def _write(
    checkpoint: Checkpoint,
    bound: BoundCheckpoint,
    planned: dict[str, Planned],
    codes: Iterator[tuple[str, NDArray[Any], NDArray[np.float32]]],
    to: str,
    folder: Path,
) -> None:
    """Integers first, in the order that they come; what stays as it is after them."""
    made = {bound.stored_name(name): each for name, each in planned.items()}
    waiting: dict[str, tuple[NDArray[Any], NDArray[np.float32]]] = {}
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for stored, each in made.items():
        layout |= layout_of(stored, each, to)
    rest = [name for name in checkpoint.names() if name not in made]
    layout |= {name: (checkpoint.dtype(name), checkpoint.shape(name)) for name in rest}
    writer = SafetensorsWriter(folder / "model.safetensors", layout)
    order = iter(made)
    expected = next(order, None)
    for name, numbers, scales in codes:
        waiting[bound.stored_name(name)] = (numbers, scales)
        while expected in waiting:
            for part, array in tensors_of(expected, *waiting.pop(expected), to).items():
                writer.write(part, array)
            expected = next(order, None)
    for name in rest:
        writer.write(name, checkpoint.tensor(name))
        checkpoint.release(name)
    writer.close()
    kept = sorted(name.removesuffix(".weight") for name in rest if len(checkpoint.shape(name)) == 2)
    config = checkpoint.config | {"quantization_config": quantization_config(to, kept)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_side_files(checkpoint, folder)


def _receipt(
    model: str,
    to: str,
    made: Model,
    reference: Model,
    planned: dict[str, Planned],
    ids: list[int],
    folder: Path,
    calibrated: bool,
) -> Receipt:
    texts = _pieces(reference, ids, MOST_TOKENS)
    found: Drift = drift(made, reference, texts)
    (before, unit), (after, _) = (speed_of(each, texts[0][:32]) for each in (reference, made))
    matrices = {source.name for p in made.network.programs.values() for m in p.matrices() for source in m.sources}
    return Receipt(
        model=model,
        to=to,
        calibrated=calibrated,
        quantized=len(planned),
        kept=len(matrices - set(planned)),
        source_bytes=_weight_bytes(reference.folder),
        bytes=_weight_bytes(folder),
        speed_unit=unit,
        source_speed=round(before, 2),
        speed=round(after, 2),
        drift=found,
    )


def _weight_bytes(folder: Path) -> int:
    files = {path for pattern in ("*.safetensors", "*.bin", "*.pth") for path in folder.glob(pattern)}
    return sum(path.stat().st_size for path in files)


def _staging(target: Path) -> Path:
    """A folder beside the target, to be renamed when everything is in it."""
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))


def _move(staging: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        target.rmdir()  # an empty one
    staging.chmod(0o755)
    os.replace(staging, target)
