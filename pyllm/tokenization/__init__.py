"""Text to token ids and back: one face over the `tokenizers` and `sentencepiece` libraries. No chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json_object
from ..errors import InvalidConfigError, TokenizerError
from .settings import read_settings
from .tokenizer import Backend, Detokenizer, Tokenizer, named_ids

__all__ = ["Detokenizer", "Tokenizer", "load_tokenizer"]

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def load_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder: from tokenizer.json, else tokenizer.model, else vocab.json and merges.txt.

    config: the folder's config.json; its vocab_size and token ids fill in what the tokenizer's files leave open.
    Raises TokenizerError, naming the file and what is wrong with it; InvalidConfigError for generation_config.json.
    """
    folder = Path(folder)
    settings = read_settings(folder, config)
    backend: Backend
    if (folder / "tokenizer.json").is_file():
        from .tokenizers_backend import read_tokenizer_json

        backend = read_tokenizer_json(folder / "tokenizer.json", settings)
    elif (folder / "tokenizer.model").is_file():
        from .sentencepiece_backend import SentencePieceBackend

        backend = SentencePieceBackend(folder / "tokenizer.model", settings)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from .tokenizers_backend import read_vocab_and_merges

        backend = read_vocab_and_merges(folder, settings)
    else:
        raise TokenizerError(_nothing_found(folder))
    generation = folder / "generation_config.json"
    generation_config = read_json_object(generation, InvalidConfigError) if generation.is_file() else {}
    vocab_size = config.get("vocab_size")
    return Tokenizer(
        backend,
        named_ids(backend, settings.named, config, generation_config),
        vocab_size if type(vocab_size) is int else 0,
    )


def _nothing_found(folder: Path) -> str:
    found = [name for name in FILES if (folder / name).is_file()]
    has = f"it has {found[0]} alone" if found else "it has none of them"
    return (
        f"[tokenizer] a tokenizer is tokenizer.json, tokenizer.model, or vocab.json with merges.txt, {folder} is not "
        f"enough: {has}, download the missing files"
    )
