"""Weights that are stored as small integers: what the readers of the formats give, and unpacking of 32-bit words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mapped import TensorEntry

Read = Callable[[str], NDArray[Any]]  # a stored tensor by name
ROWS = 64  # outputs unpacked together: their words and codes stay in the second-level cache


@dataclass(frozen=True)
class Codes:
    """A quantised matrix [n, k], outputs first: weight = scales[:, group] * (codes - zeros[:, group]).

    bits: 4 or 8. codes: uint8 0..15, or int8. scales: float32 [n, groups]. zeros: uint8 [n, groups] (4 bits only), None
    for 8 (4 bits) or 0 (8 bits). group_size: inputs that share a scale; the last group may have fewer.
    """

    bits: int
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    group_size: int

    def rows(self, begin: int, end: int | None) -> Codes:
        """Outputs [begin, end)."""
        zeros = None if self.zeros is None else self.zeros[begin:end]
        return replace(self, codes=self.codes[begin:end], scales=self.scales[begin:end], zeros=zeros)

    def regrouped(self, group_size: int) -> Codes:
        """The same by groups of `group_size`, which divides the present groups unless there is one for all inputs."""
        inputs = self.codes.shape[1]
        groups = -(-inputs // group_size)
        if self.scales.shape[1] == groups:
            return replace(self, group_size=group_size)
        of = np.arange(groups) * group_size // self.group_size if self.scales.shape[1] > 1 else np.zeros(groups, int)
        zeros = None if self.zeros is None else self.zeros[:, of]
        return replace(self, scales=self.scales[:, of], zeros=zeros, group_size=group_size)

    def dequantized(self) -> NDArray[np.float32]:
        """float32 [n, k]; each weight is one rounding of scale * (code - zero), whose integer factor is exact."""
        weights = self.codes.astype(np.float32)
        for group in range(self.scales.shape[1]):
            part = weights[:, group * self.group_size : (group + 1) * self.group_size]
            if self.zeros is not None:
                part -= self.zeros[:, group, None]
            elif self.bits == 4:
                part -= np.float32(8)
            part *= self.scales[:, group, None]
        return weights


@dataclass(frozen=True)
class Kind:
    """How a matrix is quantised. label: for people. bits 0: only its floats are to be had (no even grid, or inputs that
    share a scale are not neighbours); else 4 or 8. group_size inputs share a scale; whole: all of them do. zeros:
    whether there are zero points other than the middle."""

    label: str
    bits: int = 0
    group_size: int = 0
    zeros: bool = False
    whole: bool = False


class QuantizedMatrix(ABC):
    """One matrix of a quantised checkpoint, stored as several tensors.

    parts: the tensors' stored names by role. shape: (outputs, inputs), (0, 0) where the parts contradict each other;
    problems: those contradictions, found without reading data.
    """

    parts: dict[str, str]
    shape: tuple[int, int]
    problems: list[str]

    @abstractmethod
    def kind(self, read: Read, problems: list[str]) -> Kind:
        """How it is quantised; adds what is wrong with scales, zero points and order of the inputs to `problems`."""

    @abstractmethod
    def codes(self, read: Read) -> Codes | None:
        """Its integers, where kind() says that there are some."""

    @abstractmethod
    def floats(self, read: Read) -> NDArray[np.float32]:
        """The weights [outputs, inputs]."""


class Parts:
    """The stored tensors of one matrix, looked at with a list of what is wrong."""

    def __init__(self, name: str, entries: dict[str, TensorEntry], parts: dict[str, str]) -> None:
        self.name = name  # without .weight
        self.parts = parts  # role -> stored name
        self.problems: list[str] = []
        self._entries = entries

    def __contains__(self, role: str) -> bool:
        return role in self.parts

    def need(self, *roles: str) -> bool:
        """Whether all are there; notes those that are not."""
        missing = [role for role in roles if role not in self.parts]
        self.problems += [f"{self.name}.{role} is missing" for role in missing]
        return not missing

    def shape(self, role: str) -> tuple[int, ...]:
        return self._entries[self.parts[role]].shape

    def dtype(self, role: str) -> str:
        return self._entries[self.parts[role]].dtype

    def array(self, role: str) -> NDArray[Any]:
        """Read at once: for tensors of a few bytes."""
        return self._entries[self.parts[role]].array()

    def check(self, role: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> bool:
        """Notes a dtype that is none of `dtypes`, and a shape that is none of `shapes` (-1: any length; none: any)."""
        count, name, shape = len(self.problems), self.parts[role], self.shape(role)
        if self.dtype(role) not in dtypes:
            self.problems.append(f"{name} is stored as {self.dtype(role)}, it must be {' or '.join(dtypes)}")
        if shapes and not any(_fits(shape, each) for each in shapes):
            wanted = " or ".join(str(["any" if n < 0 else n for n in each]).replace("'", "") for each in shapes)
            self.problems.append(f"{name} is {list(shape)}, it must be {wanted}")
        return len(self.problems) == count


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


def unpack_rows(words: NDArray[Any], inputs: int) -> NDArray[np.uint8]:
    """[n, w] words of 8 codes each, low bits first -> uint8 [n, inputs]; 0..15. words may have any strides."""
    outputs, width = words.shape
    pairs = np.empty((outputs, 4 * width), np.uint16)
    for begin in range(0, outputs, ROWS):
        block = pairs[begin : begin + ROWS]
        np.copyto(block, np.ascontiguousarray(words[begin : begin + ROWS]).view(np.uint8))
        block |= block << np.uint16(4)
        block &= np.uint16(0x0F0F)  # the low byte, which comes first, is the low nibble
    return pairs.view(np.uint8)[:, :inputs]


def unpack_bytes(words: NDArray[Any], inputs: int) -> NDArray[np.uint8]:
    """[n, w] words of 4 codes each, low bits first -> uint8 [n, inputs]."""
    codes: NDArray[np.uint8] = np.ascontiguousarray(words).view(np.uint8)[:, :inputs]
    return codes


def unpack_columns(words: NDArray[Any], order: tuple[int, ...]) -> NDArray[np.uint8]:
    """[k, w] words of 8 codes each; that at bits 4p belongs to output 8 * word + order[p] -> uint8 [8 * w, k]."""
    inputs, width = words.shape
    codes = np.empty((8 * width, inputs), np.uint8)
    step = ROWS // 8
    for begin in range(0, width, step):
        block = np.ascontiguousarray(words[:, begin : begin + step].T).view(np.uint32)
        out = codes[8 * begin : 8 * (begin + step)]
        for byte in range(4):
            both = (block >> np.uint32(8 * byte)).astype(np.uint8)
            np.bitwise_and(both, 15, out=out[order[2 * byte] :: 8])
            np.right_shift(both, 4, out=out[order[2 * byte + 1] :: 8])
    return codes


def floats_of(array: NDArray[Any]) -> NDArray[np.float32]:
    """float32 from float32, float16, or bfloat16 bits in uint16."""
    if array.dtype == np.uint16:
        widened: NDArray[np.float32] = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return widened
    return array.astype(np.float32)


def check_scales(name: str, scales: NDArray[np.float32], problems: list[str]) -> None:
    """Notes scales that are no finite numbers."""
    wrong = np.count_nonzero(~np.isfinite(scales))
    if wrong:
        problems.append(f"{name} must hold finite scales, {wrong} of {scales.size} are not")


def check_order(
    name: str, order: NDArray[np.int64], group_size: int, groups: int, problems: list[str]
) -> NDArray[np.int64] | None:
    """Each input's group, None where inputs of a group are neighbours; notes groups that do not exist."""
    if not ((order >= 0) & (order < groups)).all():
        problems.append(f"{name} must name groups below {groups}, it has {order.min()} to {order.max()}")
    return None if np.array_equal(order, np.arange(len(order)) // group_size) else order


def half_holds(scales: NDArray[np.float32]) -> bool:
    """Whether rounding the scales to float16 changes them by no more than 2^-11, far less than a step of 4 bits."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by check_scales
        rounded = scales.astype(np.float16).astype(np.float32)
        return bool((np.abs(rounded - scales) <= np.abs(scales) * np.float32(2.0**-11)).all())
