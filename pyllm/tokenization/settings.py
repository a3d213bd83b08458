"""What the small files beside a vocabulary say: tokenizer_config.json, special_tokens_map.json, added_tokens.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json_object
from ..errors import TokenizerError
from .class_defaults import CLASS_TOKENS, MODEL_CLASSES, WIDE_MASK_CLASSES

NO_LIMIT = 10**12  # transformers writes 10**30 for "no limit"
SIDES = ("left", "right")


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the raw text before any other rule. id None: the next free one.

    lstrip, rstrip: it swallows the whitespace on that side. single_word: only between non-word characters.
    optional: a class's default, added only if the vocabulary has it.
    """

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Settings:
    """Tokenizer settings by transformers' names; None where no file says anything.

    class_name: without the suffix Fast, "" if unknown. named: "bos_token" etc. -> content. added: in the order of ids,
    then the special ones that have no id of their own. extra: contents of additional_special_tokens.
    model_max_length: None for no limit. values: everything the files say, for what only some classes have.
    """

    class_name: str
    named: dict[str, str]
    added: tuple[AddedToken, ...]
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool = False
    clean_up_tokenization_spaces: bool = False
    extra: tuple[str, ...] = ()
    model_max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    values: dict[str, Any] = field(default_factory=dict)

    def flag(self, key: str, default: bool) -> bool:
        """A setting that is true or false. Raises TokenizerError for anything else."""
        value = _flag(self.values, key)
        return default if value is None else value

    def text(self, key: str) -> str | None:
        """A setting that is text or absent. Raises TokenizerError for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise TokenizerError(f"[tokenizer_config.json] {key} must be text, got {value!r:.60}, correct it")
        return value

    def count(self, key: str, default: int, most: int = 1 << 20) -> int:
        """A setting that is a number of things. Raises TokenizerError for anything else."""
        value = self.values.get(key, default)
        if type(value) is not int or not 0 <= value <= most:
            raise TokenizerError(
                f"[tokenizer_config.json] {key} must be from 0 to {most}, got {value!r:.60}, correct it"
            )
        return value


def read_settings(folder: Path, config: dict[str, Any]) -> Settings:
    """Raises TokenizerError. config: the model's config.json."""
    values = _optional(folder / "tokenizer_config.json")
    declared = _declared_tokens(values.get("added_tokens_decoder"))
    if "added_tokens_decoder" not in values:
        # Older folders: the same facts are spread over two more files, which win.
        values = {**values, **_optional(folder / "special_tokens_map.json")}
    class_name = _class_name(values, config)
    defaults = CLASS_TOKENS.get(class_name, {})
    named = {k: v for k, v in values.items() if k.endswith("_token") and isinstance(v, (str, dict))}
    special = {key: _token(key, value) for key, value in named.items()}
    special |= {k: AddedToken(content, optional=True) for k, content in defaults.items() if k not in values}
    mask = special.get("mask_token")
    if mask is not None and class_name in WIDE_MASK_CLASSES and not isinstance(named.get("mask_token"), dict):
        special["mask_token"] = replace(mask, lstrip=True)
    extra = _extra_tokens(values)
    if "added_tokens_decoder" not in values:
        contents = {token.content for token in (*special.values(), *extra)}
        declared = _listed_tokens(_optional(folder / "added_tokens.json"), contents)
    known = {token.content for token in declared}
    return Settings(
        class_name=class_name,
        named={key: token.content for key, token in special.items()},
        added=(*declared, *_distinct(token for token in (*special.values(), *extra) if token.content not in known)),
        add_bos_token=_flag(values, "add_bos_token"),
        add_eos_token=_flag(values, "add_eos_token"),
        add_prefix_space=_flag(values, "add_prefix_space"),
        legacy=bool(_flag(values, "legacy")),
        clean_up_tokenization_spaces=bool(_flag(values, "clean_up_tokenization_spaces")),
        extra=tuple(token.content for token in extra),
        model_max_length=_max_length(values),
        padding_side=_side(values, "padding_side"),
        truncation_side=_side(values, "truncation_side"),
        values=values,
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, TokenizerError) if path.is_file() else {}


def _class_name(values: dict[str, Any], config: dict[str, Any]) -> str:
    name = values.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(name, str):
        name = MODEL_CLASSES.get(str(config.get("model_type")), "")
    return name.removesuffix("Fast")


def _flag(values: dict[str, Any], key: str) -> bool | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"[tokenizer_config.json] {key} must be true or false, got {value!r:.60}, correct it")
    return value


def _max_length(values: dict[str, Any]) -> int | None:
    value = values.get("model_max_length")
    if value is None or (isinstance(value, (int, float)) and value > NO_LIMIT):
        return None
    if type(value) is not int or value <= 0:
        raise TokenizerError(
            f"[tokenizer_config.json] model_max_length must be a positive integer, got {value!r:.60}, correct it"
        )
    return value


def _side(values: dict[str, Any], key: str) -> str:
    value = values.get(key, "right")
    if value not in SIDES:
        raise TokenizerError(f"[tokenizer_config.json] {key} must be left or right, got {value!r:.60}, correct it")
    return str(value)


def _token(where: str, value: Any, id: int | None = None) -> AddedToken:
    """A token given as text or as an object with `content` and flags; special unless it says otherwise."""
    if isinstance(value, str):
        value = {"content": value}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content or not is_unicode(content):
        raise TokenizerError(f"[tokenizer_config.json] {where} must be text or have text as `content`, correct it")
    special = bool(value.get("special", True))
    return AddedToken(
        content,
        id,
        special=special,
        lstrip=bool(value.get("lstrip", False)),
        rstrip=bool(value.get("rstrip", False)),
        single_word=bool(value.get("single_word", False)),
        normalized=bool(value.get("normalized", not special)),
    )


def _declared_tokens(value: Any) -> list[AddedToken]:
    """The tokens of added_tokens_decoder: {"151643": {"content": ...}, ...}, by id."""
    if value is None:
        return []
    if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 10 for key in value):
        raise TokenizerError("[tokenizer_config.json] added_tokens_decoder must map ids to tokens, correct it")
    by_id = {int(key): token for key, token in value.items()}
    if len(by_id) != len(value):
        raise TokenizerError("[tokenizer_config.json] added_tokens_decoder must name each id once, correct it")
    return [_token(f"added token {id}", {"special": False, **_object(by_id[id])}, id) for id in sorted(by_id)]


def is_unicode(text: str) -> bool:
    """Whether the text can be written: JSON may spell lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"content": value}


def _listed_tokens(values: dict[str, Any], special: set[str]) -> list[AddedToken]:
    """The tokens of added_tokens.json: {"<token>": id, ...}, by id."""
    if not all(type(id) is int and id >= 0 and token and is_unicode(token) for token, id in values.items()):
        raise TokenizerError("[added_tokens.json] must map tokens to non-negative ids, correct it")
    by_id = sorted((id, content) for content, id in values.items())
    return [
        AddedToken(content, id, special=content in special, normalized=content not in special) for id, content in by_id
    ]


def _extra_tokens(values: dict[str, Any]) -> list[AddedToken]:
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise TokenizerError("[tokenizer_config.json] additional_special_tokens must be a list, correct it")
    return [_token("additional_special_tokens", value) for value in extra]


def _distinct(tokens: Iterable[AddedToken]) -> list[AddedToken]:
    return list({token.content: token for token in tokens}.values())
