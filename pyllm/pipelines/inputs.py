"""What callers pass to a pipeline: one input, a list, or a stream that is read as its results are. All tasks alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, TypeVar

from ..errors import PromptError

Item = TypeVar("Item")
MOST_LISTED = 100  # inputs that one error describes


def is_stream(inputs: Any) -> bool:
    """Generators and every other iterable that is no list, tuple, text or dict: read lazily, answered lazily. Data sets
    that have a length and items, as PyTorch's, are iterable too."""
    fixed = (str, bytes, bytearray, list, tuple, Mapping, Set)
    scalar = getattr(inputs, "ndim", 1) == 0  # a NumPy array that holds one value and cannot be walked
    dataset = hasattr(type(inputs), "__len__") and hasattr(type(inputs), "__getitem__")
    return (isinstance(inputs, Iterable) or dataset) and not isinstance(inputs, fixed) and not scalar


def read_all(inputs: Iterable[Any], read: Callable[[Any], Item], first: int = 0) -> list[Item]:
    """`read` of every input. Raises the PromptErrors of all that are wrong as one, with the place of each: inputs are
    counted from `first`."""
    found = [_attempt(read, each) for each in inputs]
    wrong = [(index, result) for index, result in enumerate(found, first) if isinstance(result, PromptError)]
    if wrong:
        more = f" | and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
        listed = " | ".join(f"input {index}: {error}" for index, error in wrong[:MOST_LISTED])
        raise type(wrong[0][1])(listed + more)
    return [item for item in found if not isinstance(item, PromptError)]


def _attempt(read: Callable[[Any], Item], given: Any) -> Item | PromptError:
    try:
        return read(given)
    except PromptError as error:
        return error


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most `size` items, each read when it is wanted."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
