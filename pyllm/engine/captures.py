"""Which buffers and attentions of a program callers ask for by layer, and the arrays in transformers' order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidOptionError
from ..program.batch import Capture
from ..program.program import Attention, CrossAttention, Program

Layers = Sequence[int] | None
Floats = NDArray[np.float32]


def hidden_names(program: Program, layers: Layers = None) -> tuple[str, ...]:
    """Buffers of transformers' `hidden_states`: index 0 is the embeddings, i what layer i gives. None: all."""
    return _chosen("hidden_states", program.hidden, layers)


def attention_names(program: Program, layers: Layers = None, *, cross: bool = False) -> tuple[str, ...]:
    """Outputs of the attention (cross: the cross-attention) of layers 0, 1, ... None: all."""
    kind = CrossAttention if cross else Attention
    names = [op.out.name for op in program.ops if isinstance(op, kind)]
    if program.hidden:
        names = names[: len(program.hidden) - 1]  # the attention of a head (ModernBERT's mean) is none of a layer
    return _chosen("attentions", names, layers)


def _chosen(what: str, names: Sequence[str], layers: Layers) -> tuple[str, ...]:
    if layers is None:
        return tuple(names)
    count = len(names)
    given: object = layers
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidOptionError(f"[{what}] layers must be a list of integers, got {given!r:.40}; leave it out for all")
    wrong = [i for i in layers if not isinstance(i, (int, np.integer)) or not -count <= i < count]
    if wrong or not layers:
        raise InvalidOptionError(
            f"[{what}] layers must be from {-count} to {count - 1}, got {list(wrong or layers)}; leave it out for all"
        )
    return tuple(names[i] for i in layers)


@dataclass(frozen=True)
class Wanted:
    """What generate() is to return of its inside, by buffer and attention names; empty: nothing."""

    hidden: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hidden or self.attentions or self.cross)


def split_wanted(options: Mapping[str, Any], program: Program) -> tuple[dict[str, Any], Wanted]:
    """(other options, what output_hidden_states and output_attentions ask for): True for all layers, or a list of
    them. An encoder-decoder's output_attentions are those of its decoder and, of the same layers, over the source."""
    rest = dict(options)
    hidden = _layers(rest.pop("output_hidden_states", None), "output_hidden_states")
    attention = _layers(rest.pop("output_attentions", None), "output_attentions")
    crosses = program.cross_layers > 0 and attention is not False
    return rest, Wanted(
        () if hidden is False else hidden_names(program, hidden),
        () if attention is False else attention_names(program, attention),
        attention_names(program, attention, cross=True) if crosses else (),
    )


def _layers(value: Any, name: str) -> Any:
    """False: nothing, None: all layers, or the layers."""
    if value is None or value is False:
        return False
    if value is True:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise InvalidOptionError(f"[generate] {name} must be True, False or a list of layers, got {value!r}; correct it")


class Collected:
    """Captures of a text that runs in pieces, joined: `read` after each piece, then `hidden` and `weights`."""

    def __init__(self, buffers: Iterable[str] = (), attentions: Iterable[str] = ()) -> None:
        self.capture = Capture(tuple(dict.fromkeys(buffers)), tuple(dict.fromkeys(attentions)))
        self._values: dict[str, list[Floats]] = {name: [] for name in self.capture.buffers}
        self._weights: dict[str, list[Floats]] = {name: [] for name in self.capture.attentions}

    def read(self) -> None:
        """Takes what the last step captured of its one sequence."""
        for name, values in self._values.items():
            values.append(self.capture.values[name])
        for name, weights in self._weights.items():
            weights.append(self.capture.weights[name][0])

    def hidden(self, names: Sequence[str]) -> list[Floats]:
        """float32 [T, D] of each name."""
        return [np.concatenate(self._values[name]) for name in names]

    def weights(self, names: Sequence[str]) -> list[Floats]:
        """float32 [H, T, keys] of each name; keys a piece could not see yet have weight 0."""
        found = []
        for name in names:
            keys = self._weights[name][-1].shape[2]
            padded = [np.pad(piece, ((0, 0), (0, 0), (0, keys - piece.shape[2]))) for piece in self._weights[name]]
            found.append(np.concatenate(padded, axis=1))
        return found
