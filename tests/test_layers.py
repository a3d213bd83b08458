"""The direction of imports: each room may import what stands to its left. And what no room may import at all."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

ROOMS = (
    "errors",
    "checkpoint",
    "tokenization",
    "program",
    "models",
    "devices",
    "ops",
    "decode",
    "engine",
    "quantization",
    "pipelines",
    "verify",
    "cli",
)
EXTENSIONS = {"_C", "_cuda", "_cuda_emu"}  # compiled, imports nothing of pyllm
FORBIDDEN = {"torch", "transformers", "safetensors", "accelerate"}
PACKAGE = REPOSITORY / "pyllm"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py*") if path.suffix in (".py", ".pyx"))


def room_of(path: Path) -> str | None:
    """None for pyllm/__init__.py and __main__.py, the faces, which may import anything."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first in ("__init__", "__main__") else first


def imports(path: Path) -> list[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    package = ["pyllm", *path.relative_to(PACKAGE).parts[:-1]]
    if path.suffix == ".pyx":
        return re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", path.read_text(), re.MULTILINE)
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in FORBIDDEN, f"{path} imports {name}"
        if parts[0] != "pyllm" or len(parts) == 1 or room is None or parts[1] in EXTENSIONS:
            continue
        assert parts[1] in ROOMS, f"{path} imports {name}: rooms import rooms, not the package's face"
        assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{path} imports {name}, which stands to its right"


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in SOURCES} - {None} <= set(ROOMS)


def test_pybind11_stays_in_the_bindings() -> None:
    allowed = (REPOSITORY / "csrc" / "bindings", REPOSITORY / "cuda" / "bindings")
    for folder in ("csrc", "cuda"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".h", ".hpp", ".cpp", ".cu", ".cuh") and not str(path).startswith(
                tuple(map(str, allowed))
            ):
                assert not re.search(r"#\s*include\s*[<\"](pybind11|Python\.h)", path.read_text()), path
