"""From rows of an encoder to one vector a text: pooling, and the sentence-transformers files that choose it.

modules.json lists the modules; 1_Pooling/config.json, 2_Dense, 3_Normalize are their folders; sentence_bert_config.json
has the longest input, config_sentence_transformers.json the prompts. Without modules.json sentence-transformers takes
the mean of all rows, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.json_file import parse_json, read_json_object
from ..checkpoint.weights import close_files, read_weights
from ..errors import CheckpointError, InvalidConfigError, InvalidOptionError, UnsupportedModelError
from ..program import reference
from ..program.interpreter import widen
from ..program.program import ActivationName

Floats = NDArray[np.float32]

# Ways to pool, in the order in which sentence-transformers joins the vectors of several -> fields of its config.json.
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
SHORT = {"last": "lasttoken", "mean_sqrt_len": "mean_sqrt_len_tokens", "weighted_mean": "weightedmean"}
# Files with the longest input, by the names that sentence-transformers' versions gave them.
LENGTH_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
_ACTIVATIONS: dict[str, ActivationName] = {"Identity": "none", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True)
class Dense:
    """activation(weight @ vector + bias); weight [out, in]."""

    weight: Floats
    bias: Floats | None
    activation: ActivationName

    def __call__(self, vector: Floats) -> Floats:
        if vector.shape != self.weight.shape[1:]:
            raise InvalidOptionError(
                f"[embed] the folder's Dense module takes vectors of {self.weight.shape[1]}, this pooling gives "
                f"{len(vector)}; leave `pooling` out"
            )
        y = self.weight @ vector
        return np.asarray(reference.activation(self.activation, y if self.bias is None else y + self.bias), np.float32)


@dataclass(frozen=True)
class Sentences:
    """How a folder wants texts embedded.

    modes: names of MODES, whose vectors are joined. dense: what runs on the result, in order; None is a normalisation
    between others. normalize: whether the folder ends in one. max_length: longest input in tokens, None where no file
    says so. prompts: texts to put before inputs, by name; default_prompt: which one is put when none is asked for.
    include_prompt: whether the rows of the prompt are pooled too.
    """

    modes: tuple[str, ...] = ("mean",)
    dense: tuple[Dense | None, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True

    def vector(self, rows: Floats, modes: Sequence[str]) -> Floats:
        """float32 [n] of one text's rows [T, D]. Sums are float64."""
        vector = np.concatenate([pool(rows, mode) for mode in modes])
        for dense in self.dense:
            vector = unit(vector) if dense is None else dense(vector)
        return vector


def pool(rows: Floats, mode: str) -> Floats:
    """float32 [D] of rows [T, D], by a name of MODES."""
    if mode == "cls":
        return np.array(rows[0])
    if mode == "lasttoken":
        return np.array(rows[-1])
    if mode == "max":
        return np.asarray(rows.max(0))
    wide = rows.astype(np.float64)
    if mode == "weightedmean":
        weights = np.arange(1, len(rows) + 1, dtype=np.float64)
        return np.asarray((weights[:, None] * wide).sum(0) / weights.sum(), np.float32)
    length = len(rows) if mode == "mean" else np.sqrt(len(rows))
    return np.asarray(wide.sum(0) / length, np.float32)


def unit(vector: Floats) -> Floats:
    """The vector divided by its Euclidean length; a zero vector stays."""
    length = np.sqrt((vector.astype(np.float64) ** 2).sum())
    return np.asarray(vector / max(length, 1e-12), np.float32)


def chosen_modes(pooling: str | Sequence[str] | None, default: Sequence[str]) -> tuple[str, ...]:
    """The names a caller gave, checked. Raises InvalidOptionError."""
    if pooling is None:
        return tuple(default)
    names = [pooling] if isinstance(pooling, str) else list(pooling) if isinstance(pooling, (list, tuple)) else []
    found = [SHORT.get(name, name) if isinstance(name, str) else "" for name in names]
    if not found or any(name not in MODES for name in found):
        raise InvalidOptionError(
            f"[embed] pooling must be one or several of {', '.join(MODES)}, got {pooling!r:.80}; leave it out for the "
            "folder's own"
        )
    return tuple(found)


def read_sentences(folder: Path) -> Sentences:
    """What a folder's files say. Raises InvalidConfigError, CheckpointError, UnsupportedModelError.

    The first versions of sentence-transformers put the model itself into a subfolder, 0_Transformer.
    """
    length, lower_case = _read_length(folder)
    if folder.name == "0_Transformer" and (folder.parent / "modules.json").is_file():
        folder = folder.parent
    prompts, default = _read_prompts(folder)
    modes: tuple[str, ...] = ("mean",)
    include_prompt = True
    steps: list[Dense | None] = []
    for kind, place in _read_modules(folder):
        if kind == "Pooling":
            modes, include_prompt = _read_pooling(place / "config.json")
        elif kind == "Dense":
            steps.append(_read_dense(place))
        elif kind == "Normalize":
            steps.append(None)
        elif kind not in ("Transformer", "Dropout"):
            raise UnsupportedModelError(
                f"[modules.json] modules must be Transformer, Pooling, Dense, Normalize or Dropout, got {kind!r:.60}; "
                "use encode() and combine its rows yourself"
            )
    normalize = bool(steps) and steps[-1] is None
    while steps and steps[-1] is None:
        steps.pop()
    return Sentences(modes, tuple(steps), normalize, length, lower_case, prompts, default, include_prompt)


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Class name and folder of each module, in order; [] without modules.json."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = parse_json(path.read_text("utf-8"))
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
        places = [(kind, (folder / place).resolve()) for kind, place in found]  # ValueError for a NUL
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidConfigError(
            f"[modules.json] must list objects with type and path, {path} does not ({error!r:.80}); write it again"
        ) from error
    outside = [str(place) for _, place in places if not place.is_relative_to(folder.resolve())]
    if outside:
        raise InvalidConfigError(
            f"[modules.json] paths must lie in the folder, got {', '.join(outside)[:200]}; correct them"
        )
    return places


def _read_pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    config = read_json_object(path, InvalidConfigError)
    named = config.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else named
        modes = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
    else:
        modes = tuple(mode for mode, name in MODES.items() if config.get(name))
    if not modes or any(mode not in MODES for mode in modes):
        known = ", ".join(MODES.values())
        raise InvalidConfigError(f"[pooling] at least one of {known} must be true, {path} has {config!r:.200}; set one")
    return modes, config.get("include_prompt", True) is not False


def _read_dense(folder: Path) -> Dense:
    config = read_json_object(folder / "config.json", InvalidConfigError)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModelError(f"[{folder.name}] activation_function must be one of {known}, got {name!r:.60}")
    entries = read_weights(folder)
    try:
        wrong = [key for key in ("linear.weight", "linear.bias") if key not in entries]
        if wrong[:1] == ["linear.weight"] or (wrong and config.get("bias", True)):
            raise CheckpointError(
                f"[{folder.name}] a Dense module holds {', '.join(wrong)}, it is missing; download it"
            )
        weight, *bias = (
            np.asarray(widen(entries[key].array(), entries[key].dtype), np.float32)
            for key in ("linear.weight", "linear.bias")
            if key in entries
        )
    finally:
        close_files(entries)
    if weight.ndim != 2 or (bias and bias[0].shape != weight.shape[:1]):
        raise CheckpointError(
            f"[{folder.name}] a Dense module has weight [out, in] and bias [out], got {list(weight.shape)} and "
            f"{[list(each.shape) for each in bias]}; download it again"
        )
    return Dense(weight, bias[0] if bias else None, _ACTIVATIONS[name])


def _read_length(folder: Path) -> tuple[int | None, bool]:
    """max_seq_length and do_lower_case of the first file that is there."""
    for name in LENGTH_FILES:
        if (folder / name).is_file():
            config = read_json_object(folder / name, InvalidConfigError)
            length = config.get("max_seq_length")
            if length is not None and (type(length) is not int or length < 1):
                raise InvalidConfigError(f"[{name}] max_seq_length must be a number of tokens, got {length!r:.40}")
            return length, config.get("do_lower_case") is True
    return None, False


def _read_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}, None
    config = read_json_object(path, InvalidConfigError)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    texts = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not texts or (default is not None and not (isinstance(default, str) and default in prompts)):
        raise InvalidConfigError(
            f"[{path.name}] prompts must be texts by name and default_prompt_name one of the names, got "
            f"{prompts!r:.120} and {default!r:.40}; correct the file"
        )
    return prompts, default
