"""`load`: from a folder or Hub id to a LanguageModel. Checks the loading options; reading and packing happen below."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint, open_checkpoint
from ..decode.options import GenerationOptions
from ..errors import DeviceError, InvalidOptionError, UnknownOptionError
from ..models import BoundCheckpoint, bind, network_of
from ..program.batch import Runner
from ..program.network import Network
from ..tokenization import Tokenizer, check_vocabulary, load_tokenizer
from .encoder_model import EncoderModel
from .language_model import LanguageModel
from .model import Model
from .seq2seq_model import Seq2SeqModel

DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "reference")

# Loading options of transformers that pyllm lacks: the values at which they ask for nothing, and what to do otherwise.
FOREIGN: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((None, False), "no code of a checkpoint is run; leave it out"),
    "device_map": ((None, "auto", "cpu"), "a model runs on the processor of this machine; leave it out"),
    "framework": ((None, "pt"), "kernels are pyllm's own; leave it out"),
    "attn_implementation": ((None,), "kernels are pyllm's own; leave it out"),
    "use_fast": ((None, True), "a model's tokenizer is what its folder holds; leave it out"),
    "low_cpu_mem_usage": ((None, True, False), "leave it out"),
    "load_in_8bit": ((None, False), "this version runs float32 and bfloat16; leave it out"),
    "load_in_4bit": ((None, False), "this version runs float32 and bfloat16; leave it out"),
    "quantization_config": ((None,), "this version runs float32 and bfloat16; leave it out"),
    "model_kwargs": ((None, {}), "pass what it holds by name, dtype= say"),
    "use_auth_token": ((None,), "pass token="),
}


def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    dtype: Any = "auto",
    device: Any = "auto",
    quantization: None = None,
    num_threads: int | None = None,
    progress: bool = False,
    **unknown: Any,
) -> Any:
    """Loads a Hugging Face checkpoint: a LanguageModel (decoder), a Seq2SeqModel (encoder-decoder) or an EncoderModel.

    model             a folder, or a Hub id ("org/name"), which is fetched through huggingface_hub's cache
    revision, cache_dir, token, local_files_only   as in huggingface_hub.snapshot_download
    dtype             "float32", "bfloat16" (torch.bfloat16 as well), or "auto": the checkpoint's own (float16 runs as
                      bfloat16)
    device            "cpu" (transformers' -1 as well), "reference" (NumPy in float64: slow, for checking), or "auto"
    quantization      None: weights stay as they are
    num_threads       None: PYLLM_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use
    progress          bars on stderr while downloading and packing, if it is a terminal

    Raises ModelNotFoundError, UnsupportedModelError, InvalidConfigError, CheckpointError, DeviceError,
    InvalidOptionError and UnknownOptionError. The tokenizer is read at first use.
    """
    dtype, device = _name_of_dtype(dtype), _name_of_device(device)
    _check_options(unknown, dtype, device, quantization, num_threads)
    num_threads = None if num_threads is None else int(num_threads)
    checkpoint = open_checkpoint(
        model, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only, progress=progress
    )
    try:
        network = network_of(checkpoint)
        tensors = bind(network, checkpoint)
        chosen = native_dtype(network, tensors) if dtype == "auto" else dtype
        runner, chosen = _runner(network, tensors, chosen, device, num_threads, progress)
    finally:
        checkpoint.close()
    return _model_class(network)(
        network,
        runner,
        folder=checkpoint.folder,
        config=checkpoint.config,
        generation_config=_generation_config(checkpoint),
        tokenizer=_tokenizer_of(checkpoint, network.main.vocab_size),
        dtype=chosen,
        device="cpu" if device == "auto" else device,
    )


def default_model() -> Path:
    """Folder of the small English model that comes with pyllm (its README there tells how it was trained)."""
    return Path(__file__).parent.parent / "assets" / "default-model"


def _model_class(network: Network) -> type[Model]:
    if network.kind == "encoder":
        return EncoderModel
    return Seq2SeqModel if network.kind == "encoder-decoder" else LanguageModel


def native_dtype(network: Network, tensors: BoundCheckpoint) -> str:
    """What the bulk of the weights is stored in: "float32" for F32, "bfloat16" for BF16 and F16."""
    elements: dict[str, int] = {}
    matrices = {matrix: None for program in network.programs.values() for matrix in program.matrices()}
    held = set(tensors.names())
    for matrix in matrices:
        for source in matrix.sources:
            if source.name not in held:  # computed, not stored
                continue
            stored = tensors.dtype(source.name)
            size = 1
            for length in source.shape:
                size *= length
            elements[stored] = elements.get(stored, 0) + size
    return "float32" if max(elements, key=lambda stored: elements[stored]) == "F32" else "bfloat16"


def _runner(
    network: Network, tensors: BoundCheckpoint, dtype: str, device: str, num_threads: int | None, progress: bool
) -> tuple[Runner, str]:
    """The runner and the type it computes in."""
    if device == "reference":
        from ..devices.reference import ReferenceRunner

        return ReferenceRunner(network, tensors), "float64"
    from ..devices.cpu import CpuRunner

    return CpuRunner(network, tensors, dtype=dtype, num_threads=num_threads, progress=progress), dtype


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json; without one the generation options of config.json, as transformers does."""
    if (checkpoint.folder / "generation_config.json").is_file():
        return checkpoint.generation_config
    names = {field.name for field in dataclasses.fields(GenerationOptions)}
    return {name: value for name, value in checkpoint.config.items() if name in names}


def _tokenizer_of(checkpoint: Checkpoint, vocab_size: int) -> Any:
    folder, config = checkpoint.folder, checkpoint.config

    def read() -> Tokenizer:
        tokenizer = load_tokenizer(folder, config)
        check_vocabulary(tokenizer, vocab_size)
        return tokenizer

    return read


def _check_options(
    unknown: dict[str, Any], dtype: object, device: object, quantization: object, num_threads: object
) -> None:
    """All problems at once. Raises UnknownOptionError, DeviceError (cuda) or InvalidOptionError."""
    known = [name for name in inspect.signature(load).parameters if name != "unknown"]
    unknowns, problems = [], []
    for name, value in unknown.items():
        if name in FOREIGN:
            idle, cure = FOREIGN[name]
            if not any(type(value) is type(each) and value == each for each in idle):
                problems.append(f"{name}={value!r:.80} is an option of transformers that pyllm lacks: {cure}")
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        unknowns.append(f"there is no option {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        float16 = " (float16 checkpoints run as bfloat16)" if str(dtype) == "float16" else ""
        problems.append(f"dtype must be one of {', '.join(DTYPES)}{float16}, got {dtype!r}")
    cuda = isinstance(device, str) and device.partition(":")[0] == "cuda"
    if not cuda and (not isinstance(device, str) or device not in DEVICES):
        problems.append(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if quantization is not None:
        problems.append(f"quantization must be None, got {quantization!r}; this version runs float32 and bfloat16")
    if num_threads is not None and not _is_count(num_threads):
        problems.append(f"num_threads must be a positive number or None, got {num_threads!r}")
    if unknowns or problems:
        kind = UnknownOptionError if unknowns else InvalidOptionError
        raise kind("[load] " + "; ".join(unknowns + problems))
    if cuda:
        raise DeviceError("[load] device 'cuda' needs a build with CUDA kernels, this one has none; use device='cpu'")


def _name_of_dtype(dtype: object) -> object:
    """torch.float32 and the like by name."""
    return str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype


def _name_of_device(device: object) -> object:
    """transformers' numbers by name, -1 being the processor, and torch.device objects."""
    if type(device).__module__ == "torch":
        return str(device)
    if type(device) is not int:
        return device
    return "cpu" if device == -1 else f"cuda:{device}"


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return False
    return 1 <= int(value) < 2**31  # the device knows its own, lower limit
