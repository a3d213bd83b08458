"""What a model is compared with: outputs that something else computed; reading and writing them.

A folder holds, each file where there is something to say:

    logits.npz        decoders: prompt_i int [T] and logits_i float32 [T, V]; encoder-decoders: source_i [S],
                      decoder_i [T], logits_i [T, V] and encoded_i [S, D]
    outputs.npz       encoders: ids_i and type_ids_i [T], output_i (the head's logits, or the last hidden state), and
                      hidden_i [T, D], the last hidden state
    generation.json   {"cases": [{"name", "prompt" or "source", "options", "token_ids": [[...]], "scores": [...]}]}:
                      what generate() gave with these options and no others; new tokens only, best first
    tokenization.json {"texts": [{"text", "ids"}]}

A JSON file holds the same: {"outputs": [{"prompt": ..., "logits": ...}], "cases": [...], "texts": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.json_file import read_json_object
from ..errors import InvalidOptionError

Floats = NDArray[np.float32]

# By kind of model: the file, the names of what goes in, and of what comes out.
FORMATS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "decoder": ("logits.npz", ("prompt",), ("logits",)),
    "encoder-decoder": ("logits.npz", ("source", "decoder"), ("logits", "encoded")),
    "encoder": ("outputs.npz", ("ids", "type_ids"), ("output", "hidden")),
}


@dataclass(frozen=True)
class Pass:
    """One forward pass. inputs: token ids by FORMATS' names; outputs: float32 arrays by theirs."""

    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, Floats]

    @property
    def length(self) -> int:
        """Tokens of the longest input."""
        return max(map(len, self.inputs.values()))


@dataclass(frozen=True)
class Case:
    """One call of generate(). prompt: an encoder-decoder's source."""

    name: str
    prompt: list[int]
    options: Mapping[str, Any]
    token_ids: list[list[int]]
    scores: list[float] | None = None


@dataclass(frozen=True)
class Reference:
    """origin: who computed it. missing: what could not be asked, with the reason, by check."""

    origin: str
    kind: str
    texts: Sequence[tuple[str, list[int]]] = ()
    passes: Sequence[Pass] = ()
    cases: Sequence[Case] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def read_reference(path: Path, kind: str) -> Reference:
    """From a folder or a JSON file. Raises InvalidOptionError for one that is not there, or not for this kind."""
    if not path.exists():
        raise InvalidOptionError(f"[verify] reference must be a folder or a JSON file, {path} is not there; correct it")
    try:
        parts = _read_folder(path, kind) if path.is_dir() else read_json_object(path, InvalidOptionError)
        passes = [_pass(kind, entry) for entry in parts.get("outputs", ())]
        cases = [_case(kind, entry) for entry in parts.get("cases", ())]
        texts = [(str(entry["text"]), [int(id) for id in entry["ids"]]) for entry in parts.get("texts", ())]
    except InvalidOptionError:
        raise
    except (KeyError, TypeError, ValueError, BadZipFile) as error:
        raise InvalidOptionError(
            f"[verify] {path} must hold recorded outputs of {kind}s, got {type(error).__name__}: {error}; record "
            "them again"
        ) from error
    if not (passes or cases or texts):
        name = FORMATS[kind][0]
        raise InvalidOptionError(
            f"[verify] {path} must hold recorded outputs of {kind}s, it has none; give a folder with {name}, "
            "generation.json or tokenization.json"
        )
    by = parts.get("transformers")
    return Reference(f"{path}" + (f" (transformers {by})" if by else ""), kind, texts, passes, cases)


def write_reference(folder: Path, reference: Reference) -> None:
    """Writes what `read_reference` reads from a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    name, inputs, outputs = FORMATS[reference.kind]
    arrays: dict[str, Any] = {}
    for index, each in enumerate(reference.passes):
        arrays |= {f"{key}_{index}": np.array(each.inputs[key], np.int32) for key in inputs if key in each.inputs}
        arrays |= {f"{key}_{index}": each.outputs[key] for key in outputs if key in each.outputs}
    if arrays:
        np.savez_compressed(folder / name, **arrays)
    prompt = "source" if reference.kind == "encoder-decoder" else "prompt"
    cases = [
        {"name": c.name, prompt: c.prompt, "options": c.options, "token_ids": c.token_ids, "scores": c.scores}
        for c in reference.cases
    ]
    version = reference.origin.rpartition("transformers ")[2].rstrip(")")
    _write(folder / "generation.json", {"transformers": version, "cases": cases} if cases else None)
    texts = [{"text": text, "ids": ids} for text, ids in reference.texts]
    _write(folder / "tokenization.json", {"texts": texts} if texts else None)


def _write(path: Path, content: Any) -> None:
    if content is not None:
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_folder(folder: Path, kind: str) -> dict[str, Any]:
    name, inputs, outputs = FORMATS[kind]
    parts: dict[str, Any] = {}
    for file in ("tokenization.json", "generation.json"):
        if (folder / file).is_file():
            parts |= read_json_object(folder / file, InvalidOptionError)
    if (folder / name).is_file():
        with np.load(folder / name) as arrays:
            count = sum(key.startswith(f"{inputs[0]}_") for key in arrays)
            if not count:
                raise KeyError(f"{inputs[0]}_0")
            keys = (*inputs, *outputs)
            parts["outputs"] = [
                {key: arrays[f"{key}_{index}"] for key in keys if f"{key}_{index}" in arrays} for index in range(count)
            ]
    return parts


def _pass(kind: str, entry: Mapping[str, Any]) -> Pass:
    _, inputs, outputs = FORMATS[kind]
    ids = {name: [int(id) for id in entry[name]] for name in inputs if name in entry or name != "type_ids"}
    arrays = {name: np.asarray(entry[name], np.float32) for name in outputs if name in entry}
    if outputs[0] not in arrays:
        raise KeyError(outputs[0])
    return Pass(ids, arrays)


def _case(kind: str, entry: Mapping[str, Any]) -> Case:
    prompt = entry["source" if kind == "encoder-decoder" else "prompt"]
    tokens = [[int(id) for id in ids] for ids in entry["token_ids"]]
    scores = None if entry.get("scores") is None else [float(score) for score in entry["scores"]]
    return Case(str(entry.get("name", "")), [int(id) for id in prompt], dict(entry["options"]), tokens, scores)
