"""`load`: from a folder or Hub id to a LanguageModel. Checks the loading options; reading and packing happen below."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint, open_checkpoint
from ..decode.options import GenerationOptions
from ..devices import cuda_driver
from ..devices.formats import DTYPES, KV_CACHES, QUANTIZATIONS
from ..errors import InvalidConfigError, InvalidOptionError, UnknownOptionError
from ..models import BoundCheckpoint, bind, network_of
from ..program.batch import Runner
from ..program.network import Network
from ..tokenization import Tokenizer, check_vocabulary, load_tokenizer
from .encoder_model import EncoderModel
from .language_model import LanguageModel
from .model import Model
from .seq2seq_model import Seq2SeqModel

DEVICES = ("auto", "cpu", "cuda", "reference")

# Loading options of transformers that pyllm lacks: the values at which they ask for nothing, and what to do otherwise.
FOREIGN: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((None, False), "no code of a checkpoint is run; leave it out"),
    "device_map": ((None, "auto", "cpu"), "a model runs on the processor of this machine; leave it out"),
    "framework": ((None, "pt"), "kernels are pyllm's own; leave it out"),
    "attn_implementation": ((None,), "kernels are pyllm's own; leave it out"),
    "use_fast": ((None, True), "a model's tokenizer is what its folder holds; leave it out"),
    "low_cpu_mem_usage": ((None, True, False), "leave it out"),
    "load_in_8bit": ((None, False), 'pass quantization="int8"'),
    "load_in_4bit": ((None, False), 'pass quantization="int4"'),
    "quantization_config": (
        (None,),
        'pass quantization="int8" or "int4" (a checkpoint that is quantised already is read as it is)',
    ),
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
    quantization: str | None = None,
    kv_cache: Any = None,
    num_threads: int | None = None,
    progress: bool = False,
    **unknown: Any,
) -> Any:
    """Loads a Hugging Face checkpoint: a LanguageModel (decoder), a Seq2SeqModel (encoder-decoder) or an EncoderModel.

    model             a folder, or a Hub id ("org/name"), which is fetched through huggingface_hub's cache
    revision, cache_dir, token, local_files_only   as in huggingface_hub.snapshot_download
    dtype             "float32", "bfloat16", "float16" (torch.bfloat16 and so on as well), or "auto": the checkpoint's
                      own (float16 runs as bfloat16); "float32-bf16x3": float32 whose matmuls are three products of
                      bfloat16 halves on processors with AMX, to about 1e-5, and plain float32 elsewhere
    device            "cpu" (transformers' -1 as well), "cuda" or "cuda:1" (an NVIDIA GPU), "reference" (NumPy in
                      float64: slow, for checking), or "auto": "cuda" where it can be used and no num_threads is given
    quantization      None: as the checkpoint is, which may be quantised by GPTQ, AWQ, compressed-tensors or
                      bitsandbytes. "int8", "int8-fast" (8-bit activations too), "int4" (groups of 32 inputs),
                      "int4-g128": weights of linear layers and experts are quantised while loading
    kv_cache          None: keys and values in dtype; or "float32", "bfloat16", "float16", "int8"
    num_threads       None: PYLLM_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use
    progress          bars on stderr while downloading and packing, if it is a terminal

    Raises ModelNotFoundError, UnsupportedModelError, InvalidConfigError, CheckpointError, DeviceError,
    InvalidOptionError and UnknownOptionError. The tokenizer is read at first use.
    """
    dtype, device, kv_cache = _name_of_dtype(dtype), _name_of_device(device), _name_of_dtype(kv_cache)
    _check_options(unknown, dtype, device, quantization, kv_cache, num_threads)
    num_threads = None if num_threads is None else int(num_threads)
    device = _chosen_device(device, num_threads)
    checkpoint = open_checkpoint(
        model, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only, progress=progress
    )
    try:
        network = network_of(checkpoint)
        tensors = bind(network, checkpoint)
        chosen = native_dtype(network, tensors) if dtype == "auto" else dtype
        runner: Runner
        if device == "reference":
            from ..devices.reference import ReferenceRunner

            runner, chosen = ReferenceRunner(network, tensors), "float64"
        elif device != "cpu":
            from ..devices.cuda import CudaRunner

            runner = CudaRunner(
                network,
                tensors,
                dtype=chosen,
                quantization=quantization or _recorded_quantization(checkpoint),
                kv_cache=kv_cache,
                progress=progress,
                device_index=_device_index(device),
                folder=checkpoint.folder,
            )
        else:
            from ..devices.cpu import CpuRunner

            runner = CpuRunner(
                network,
                tensors,
                dtype=chosen,
                quantization=quantization or _recorded_quantization(checkpoint),
                kv_cache=kv_cache,
                num_threads=num_threads,
                progress=progress,
                folder=checkpoint.folder,
            )
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
        quantization=getattr(runner, "quantization", None),
        kv_cache=getattr(runner, "kv_cache", chosen),
        device=device,
    )


def default_model() -> Path:
    """Folder of the small English model that comes with pyllm (its README there tells how it was trained)."""
    return Path(__file__).parent.parent / "assets" / "default-model"


def _model_class(network: Network) -> type[Model]:
    if network.kind == "encoder":
        return EncoderModel
    return Seq2SeqModel if network.kind == "encoder-decoder" else LanguageModel


def native_dtype(network: Network, tensors: BoundCheckpoint) -> str:
    """What the bulk of the weights is stored in: "float32" for F32, "bfloat16" for BF16 and F16. Of a quantised
    checkpoint: of the weights that are not; of the vectors where all are."""
    programs = network.programs.values()
    matrices = dict.fromkeys(source for program in programs for each in program.matrices() for source in each.sources)
    vectors = dict.fromkeys(vector.source for program in programs for vector in program.vectors())
    held = set(tensors.names())  # others are computed, not stored
    for sources in (matrices, vectors):
        elements: Counter[str] = Counter()
        for source in sources:
            if source.name in held and tensors.kind(source.name) is None:
                elements[tensors.dtype(source.name)] += prod(source.shape)
        if elements:
            return "float32" if elements.most_common(1)[0][0] == "F32" else "bfloat16"
    return "bfloat16"


def _recorded_quantization(checkpoint: Checkpoint) -> str | None:
    """What `pyllm quantize` made a folder in: a head that is tied to the embeddings lies there as floats, for other
    readers, and is quantised like the rest while loading. None: another's folder. Raises InvalidConfigError."""
    recorded = (checkpoint.config.get("quantization_config") or {}).get("pyllm")
    if recorded is None:
        return None
    name = recorded.get("quantization") if isinstance(recorded, dict) else recorded
    if name not in QUANTIZATIONS:
        raise InvalidConfigError(
            f"[config] quantization_config.pyllm.quantization must be one of {', '.join(QUANTIZATIONS)}, got {name!r}; "
            "make the folder again with pyllm quantize"
        )
    return str(name)


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
    unknown: dict[str, Any],
    dtype: object,
    device: object,
    quantization: object,
    kv_cache: object,
    num_threads: object,
) -> None:
    """All problems at once. Raises UnknownOptionError, InvalidOptionError, or DeviceError (cuda lacks something)."""
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
    problems += _wrong_choice("dtype", dtype, ("auto", *DTYPES))
    problems += _wrong_choice("quantization", quantization, QUANTIZATIONS, none=True)
    problems += _wrong_choice("kv_cache", kv_cache, KV_CACHES, none=True)
    if isinstance(device, str) and device == "reference" and (quantization is not None or kv_cache is not None):
        problems.append(
            "the reference device computes with a checkpoint's own weights in float64, got quantization="
            f"{quantization!r} and kv_cache={kv_cache!r}; leave them out"
        )
    cuda = isinstance(device, str) and re.fullmatch(r"cuda(:\d{1,4})?", device) is not None
    if not cuda and (not isinstance(device, str) or device not in DEVICES):
        problems.append(f"device must be one of {', '.join(DEVICES)} or a GPU by number ('cuda:0'), got {device!r}")
    if num_threads is not None and not _is_count(num_threads):
        problems.append(f"num_threads must be a positive number or None, got {num_threads!r}")
    elif num_threads is not None and cuda:
        problems.append(f"num_threads is for the processor, got num_threads={num_threads!r} with device={device!r}")
    if unknowns or problems:
        kind = UnknownOptionError if unknowns else InvalidOptionError
        raise kind("[load] " + "; ".join(unknowns + problems))
    if cuda:
        cuda_driver.load(_device_index(device))


def _chosen_device(device: Any, num_threads: int | None) -> str:
    """ "auto" resolved. A number of threads asks for the processor."""
    if device != "auto":
        return str(device)
    return "cuda" if num_threads is None and not cuda_driver.emulated() and cuda_driver.missing() is None else "cpu"


def _device_index(device: Any) -> int:
    """Of "cuda" or "cuda:1"."""
    return int(str(device).partition(":")[2] or 0)


def _wrong_choice(name: str, value: object, known: tuple[str, ...], *, none: bool = False) -> list[str]:
    """A sentence, unless the value is one of `known` (or None)."""
    if (none and value is None) or (isinstance(value, str) and value in known):
        return []
    near = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return [f"{name} must be {'None or ' if none else ''}one of {', '.join(known)}, got {value!r:.80}{hint}"]


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
