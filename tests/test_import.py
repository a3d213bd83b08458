"""`import pyllm` is quick, lazy and offline; public names resolve; a missing compiled module says what to do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pyllm

PROBE = """
import json, sys, time
before = set(sys.modules)
began = time.perf_counter()
import pyllm
seconds = time.perf_counter() - began
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


def fresh_import() -> tuple[float, list[str]]:
    output = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    seconds, modules = json.loads(output)
    return seconds, modules


def test_import_is_quick_and_loads_next_to_nothing() -> None:
    runs = [fresh_import() for _ in range(5)]
    assert min(seconds for seconds, _ in runs) < 0.15
    heavy = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "socket", "ssl", "http", "urllib"}
    assert not heavy & {name.partition(".")[0] for name in runs[0][1]}


def test_loading_a_folder_needs_neither_torch_nor_the_network() -> None:
    code = """
import sys, socket
def refuse(*_): raise AssertionError("the network was used")
socket.socket.connect = refuse
import pyllm
pyllm.load(pyllm.default_model()).generate("The prince", max_new_tokens=2)
print([name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in pyllm.__all__:
        assert getattr(pyllm, name) is getattr(pyllm, name)
    assert set(dir(pyllm)) == set(pyllm.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        pyllm.no_such_name  # noqa: B018


def test_a_missing_compiled_module_is_a_sentence_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllm, "_COMPILED", ("pyllm._absent",))
    monkeypatch.delitem(vars(pyllm), "load", raising=False)
    with pytest.raises(ImportError, match=r"\[pyllm\] .*pyllm\._absent.*pip install"):
        pyllm.load  # noqa: B018
