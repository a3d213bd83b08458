"""Real weights: stories260K, converted to a Hugging Face folder, writes the recorded story byte for byte.

The two best log-probabilities come as close as 0.004 along the story: float32 is enough, bfloat16 is not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import stories260k
from conftest import data_path
from stepping import greedy

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.models import bind, build_program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories260K")
    stories260k.convert(data_path("models/stories260K"), path)
    return path


@pytest.fixture(scope="module")
def story() -> bytes:
    """200 greedy tokens after the begin token."""
    return data_path("models/stories260K/expected-greedy-200.txt").read_bytes()


def test_the_reference_writes_the_story(folder: Path, story: bytes) -> None:
    tokenization = pytest.importorskip("pyllm.tokenization")
    checkpoint = open_checkpoint(folder)
    program = build_program(checkpoint.config)
    ids = greedy(ReferenceRunner(program, bind(program, checkpoint)), [stories260k.BOS], 200)
    assert tokenization.load_tokenizer(folder, checkpoint.config).decode(ids).encode() == story


@pytest.mark.parametrize("num_threads", [1, 2])
def test_generate_writes_the_story(folder: Path, story: bytes, num_threads: int) -> None:
    pytest.importorskip("pyllm._C")
    model = pyllm.load(folder, num_threads=num_threads)
    result = model.generate([stories260k.BOS], max_new_tokens=200)
    assert len(result.token_ids) == 200
    assert result.text.encode() == story


def test_a_prompt_is_continued_by_the_same_story(folder: Path, story: bytes) -> None:
    """The text's own beginning as a prompt: tokenized as it was generated, the story goes on the same way."""
    pytest.importorskip("pyllm._C")
    model = pyllm.load(folder)
    prompt = "Once upon a time, there was a little girl named Lily."
    assert story.decode().startswith(prompt)
    pieces = list(model.stream(prompt, max_new_tokens=60))
    assert story.decode().startswith(prompt + "".join(pieces))
