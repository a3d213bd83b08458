"""Text to token ids and back: one face over the `tokenizers` and `sentencepiece` libraries; chat templates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json_object
from ..errors import InvalidConfigError, TokenizerError
from .backend import Backend
from .detokenizer import Detokenizer
from .encoding import Encoding
from .languages import Languages, read_languages
from .settings import Settings, read_settings
from .tokenizer import Tokenizer, check_vocabulary, named_ids

__all__ = ["Detokenizer", "Encoding", "Tokenizer", "check_vocabulary", "load_tokenizer"]

PIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
NAMED_PIECES = ("sentencepiece.bpe.model", "vocab.json")  # M2M100
# What makes a tokenizer: the first row whose files are all there is read.
KINDS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("source.spm", "target.spm", "vocab.json"),
    NAMED_PIECES,
    *((file,) for file in PIECE_FILES),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)


def load_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder, from the first of KINDS that it has.

    config: the folder's config.json; its vocab_size and token ids fill in what the tokenizer's files leave open.
    Raises TokenizerError, naming the file and what is wrong with it; InvalidConfigError for generation_config.json.
    """
    from .chat_template import read_chat_template

    folder = Path(folder)
    settings = read_settings(folder, config)
    whole = [kind for kind in KINDS if all((folder / file).is_file() for file in kind)]
    named_pieces = settings.class_name in ("M2M100Tokenizer", "")
    kind = next((kind for kind in whole if kind != NAMED_PIECES or named_pieces), None)
    if kind is None:
        raise TokenizerError(_nothing_found(folder))
    if "tokenizer_class" not in settings.values and settings.class_name == "M2M100Tokenizer" and kind != NAMED_PIECES:
        # NLLB has M2M100's model type and a vocabulary of another kind.
        settings = replace(settings, class_name="NllbTokenizer")
    backend, languages = _read(kind, folder, settings)
    generation = folder / "generation_config.json"
    generation_config = read_json_object(generation, InvalidConfigError) if generation.is_file() else {}
    vocab_size = config.get("vocab_size")
    named = named_ids(backend, settings.named, config, generation_config)
    return Tokenizer(
        backend,
        named,
        vocab_size if type(vocab_size) is int else 0,
        settings,
        languages or read_languages(settings, backend.token_to_id, named.get("eos_token")),
        read_chat_template(folder, settings.values.get("chat_template")),
    )


def _read(kind: tuple[str, ...], folder: Path, settings: Settings) -> tuple[Backend, Languages | None]:
    """The backend, and its languages where its files alone tell them. Modules are imported here: each costs time."""
    if kind[0] == "tokenizer.json":
        from .tokenizers_backend import read_tokenizer_json

        return read_tokenizer_json(folder / "tokenizer.json", settings), None
    if kind[0] == "source.spm":
        from .pieces_by_name_backend import read_marian

        return read_marian(folder, settings)
    if kind == NAMED_PIECES:
        from .pieces_by_name_backend import read_m2m100

        return read_m2m100(folder, settings), None
    if kind[0] in PIECE_FILES:
        from .sentencepiece_backend import SentencePieceBackend

        return SentencePieceBackend(folder / kind[0], settings), None
    from .vocabulary_files import read_vocab_and_merges, read_vocab_txt

    return (read_vocab_txt if kind[0] == "vocab.txt" else read_vocab_and_merges)(folder, settings), None


def _nothing_found(folder: Path) -> str:
    found = [name for name in dict.fromkeys(name for kind in KINDS for name in kind) if (folder / name).is_file()]
    has = f"it has {' and '.join(found)} alone" if found else "it has none of them"
    kinds = ", ".join(" with ".join(kind) for kind in KINDS)
    return f"[tokenizer] a tokenizer is one of {kinds}; {folder} is not enough: {has}, download the missing files"
