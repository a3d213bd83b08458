"""From what a user calls a model (folder or Hub id) to a local folder. The package's only network access."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import InvalidOptionError, ModelNotFoundError
from .weights import find_weights

# Exact names, so that copies of a model in subfolders (onnx/, original/) are not downloaded.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
# How a sentence-transformers model pools; its modules lie in numbered subfolders, some with a small matrix.
SENTENCE_FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
    "[0-9]_Dense/model.safetensors",
    "[0-9]_Dense/pytorch_model.bin",
)
SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors")
TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin")

# The Hub's own rule: one or two parts of letters, digits, '-', '_' and '.', with no '-' or '.' at either end.
HUB_PART = r"(?![-.])[\w.-]{1,96}(?<![-.])"
HUB_ID = re.compile(rf"{HUB_PART}(/{HUB_PART})?", re.ASCII)


def find_folder(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: bool = False,
) -> Path:
    """The local folder of `model`, downloaded if need be. Raises ModelNotFoundError or InvalidOptionError."""
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str) or not name or "\0" in name:
        raise ModelNotFoundError(f"[load] a model is a folder or a Hub id like 'org/name', got {name!r:.80}, give one")
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        if revision is not None:
            raise InvalidOptionError(f"[load] revision selects a version on the Hub, {path} is a folder, leave it out")
        return path
    if os.path.isfile(path):
        raise ModelNotFoundError(f"[load] a model is a folder, {path} is a file, give the folder that holds it")
    if not isinstance(model, str) or not is_hub_id(name):
        raise ModelNotFoundError(_no_folder(path, name))
    return _download(
        name,
        progress=progress,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
    )


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name and not name.endswith(".git")


def _no_folder(path: Path, name: str) -> str:
    """The sentence about a folder that is not there, with the nearest that are."""
    parent = path.parent
    while not os.path.isdir(parent) and parent != parent.parent:
        parent = parent.parent
    try:
        folders = [child.name for child in parent.iterdir() if child.is_dir()]
    except OSError:
        folders = []
    wanted = path.relative_to(parent).parts[0] if path != parent else path.name
    near = difflib.get_close_matches(wanted, folders, n=3)
    cure = f"did you mean {' or '.join(str(parent / other) for other in near)}?" if near else "check the path"
    return f"[load] {name!r} must be a model folder or a Hub id like 'org/name', there is no folder {path}, {cure}"


def _download(name: str, *, progress: bool, **options: Any) -> Path:
    """The snapshot folder of a Hub id with its text files and safetensors, or torch files if it has no safetensors."""
    from huggingface_hub import snapshot_download

    if not (progress and sys.stderr.isatty()):
        options["tqdm_class"] = _silent_bar()
    folder = Path()
    problem: Exception | None = None
    for weights in (SAFETENSORS_FILES, TORCH_FILES):
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, *SENTENCE_FILES, *weights], **options))
            problem = None
        except Exception as error:
            problem = error
            # Without the network a snapshot that lacks listed but unneeded files, or the other format, will do.
            if not hasattr(error, "snapshot_path"):
                break
            folder = Path(error.snapshot_path)
        if (folder / "config.json").is_file() and find_weights(folder) is not None:
            return folder
    if problem is not None:
        raise ModelNotFoundError(_explain(name, problem, **options)) from problem
    return folder


def _explain(name: str, error: Exception, *, revision: str | None, local_files_only: bool, **_: Any) -> str:
    """One sentence for what huggingface_hub raised."""
    from huggingface_hub import constants, errors

    what = f"[load] {name!r} is no local folder, and"
    if isinstance(error, errors.GatedRepoError):
        return f"{what} on the Hub it is gated: ask for access at {_url(name)}, then set HF_TOKEN or pass token="
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} the Hub has no such model, or it is private: check the name, or set HF_TOKEN or pass token="
    if isinstance(error, errors.RevisionNotFoundError):
        return f"[load] {name!r} has no revision {revision!r} on the Hub, see {_url(name)}/tree/main for those it has"
    if not isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return f"{what} it cannot be fetched from the Hub ({_first_line(error)}): check network, disk and HF_TOKEN"
    state = "its cached files are incomplete" if hasattr(error, "snapshot_path") else "the cache does not have it"
    if revision:
        state += f" at revision {revision!r}"
    if local_files_only:
        return f"{what} {state} while local_files_only=True: drop that to download, or give a local folder"
    if constants.HF_HUB_OFFLINE:
        return f"{what} {state} while HF_HUB_OFFLINE is set: unset it to download, or give a local folder"
    reason = _first_line(error.__cause__ or error)
    return f"{what} {state} and the Hub cannot be reached ({reason}): check the network, or give a local folder"


def _url(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _silent_bar() -> type:
    from tqdm.auto import tqdm

    class SilentBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # huggingface_hub's own bars take it, tqdm's do not
            super().__init__(*args, **{**kwargs, "disable": True})

    return SilentBar
