"""What commands read and print: texts from arguments, files or stdin in batches, one result a line, a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click
from tqdm import tqdm

from ..errors import PromptError

Item = dict[str, Any]


def read(texts: Sequence[str], files: Sequence[str], keys: Sequence[str] = ("text",)) -> list[Item] | Iterator[Item]:
    """Items of a command: those given, then those of each file; stdin when there are neither.

    An item is a dict with all of `keys`, from a line of JSON, or {keys[0]: the text}. Files whose name ends in .jsonl
    hold one JSON object a line; stdin does when its first line begins with a brace. Lines that are empty are passed
    over. Given texts come as a list, whose length a progress bar can show. Raises PromptError naming file and line.
    """
    given = [{keys[0]: text} for text in texts]
    if not files and texts:
        return _complete(given, keys, "the command line")
    return _chained(_complete(given, keys, "the command line"), files or ("-",), keys)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def run(
    items: list[Item] | Iterator[Item],
    batch_size: int,
    work: Callable[[list[Item]], Sequence[Any]],
    show: Callable[[Item, Any], str],
    *,
    as_json: bool,
    count_tokens: Callable[[Item, Any], int],
) -> None:
    """work(batch) gives a result for each item, which is printed at once: as `show` has it, or as JSON. On a terminal
    a bar on stderr counts texts and tokens a second and, where the number of texts is known, the time left."""
    total = len(items) if isinstance(items, list) else None
    hidden = not sys.stderr.isatty() or total == 1
    tokens = 0
    with tqdm(total=total, unit="text", file=sys.stderr, disable=hidden) as bar:
        for batch in batches(items, batch_size):
            for item, result in zip(batch, work(batch), strict=True):
                with bar.external_write_mode(file=sys.stdout):
                    click.echo(to_json({**item, "result": result}) if as_json else show(item, result))
                if not hidden:
                    tokens += count_tokens(item, result)
            bar.update(len(batch))
            if not hidden:
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s")


def to_json(value: Any) -> str:
    """One line; NumPy arrays and numbers as JSON's; escaped where stdout cannot take every character."""
    escape = getattr(sys.stdout, "encoding", "utf-8").lower() not in ("utf-8", "utf8")
    return json.dumps(value, ensure_ascii=escape, default=lambda other: other.tolist())


def standard_input(where: str) -> IO[str]:
    """Raises PromptError where there is none."""
    if sys.stdin is None:
        raise PromptError(f"[{where}] the text is read from stdin, which is closed; pipe a text in or give it")
    return sys.stdin


def _chained(given: list[Item], files: Sequence[str], keys: Sequence[str]) -> Iterator[Item]:
    yield from given
    for name in files:
        if name == "-":
            yield from _lines(standard_input("stdin"), "stdin", None, keys)
        else:
            with Path(name).open(encoding="utf-8") as file:
                yield from _lines(file, name, name.endswith(".jsonl"), keys)


def _lines(file: IO[str], name: str, is_json: bool | None, keys: Sequence[str]) -> Iterator[Item]:
    number = 0
    try:
        for number, raw in enumerate(file, 1):
            line = raw.rstrip("\n")
            if not line.strip():
                continue
            if is_json is None:
                is_json = line.lstrip().startswith("{")
            item = _object(line, name, number) if is_json else {keys[0]: line}
            yield from _complete([item], keys, f"{name}, line {number}")
    except UnicodeDecodeError as error:
        raise PromptError(f"[{name}] must be UTF-8, it is not after line {number}; save it again") from error


def _object(line: str, name: str, number: int) -> Item:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    if not isinstance(item, dict):
        raise PromptError(f"[{name}] line {number} must be a JSON object, got {line!r:.60}; correct it")
    return item


def _complete(items: list[Item], keys: Sequence[str], where: str) -> list[Item]:
    for item in items:
        missing = [key for key in keys if not isinstance(item.get(key), str)]
        if missing:
            raise PromptError(f"[{where}] needs {' and '.join(map(repr, missing))} as text, got {item!r:.80}; add it")
    return items
