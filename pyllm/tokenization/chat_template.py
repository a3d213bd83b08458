"""Chat templates: reading them from a model folder, and rendering conversations with them as transformers does."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.json_file import read_json_object
from ..errors import TokenizerError

if TYPE_CHECKING:
    import jinja2

    from .template_sandbox import LimitedEnvironment

MAX_BYTES = 128 << 10  # the longest published templates have some 20 KB; compiling takes time
# A message's reasoning has several names; a template finds it under each (transformers 5).
REASONING = ("reasoning_content", "thinking", "reasoning")
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of the message to be continued; transformers' own word


class ChatTemplate:
    """The templates of one model, by name; "default" is the one for most uses, "tool_use" the one for tools."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = dict(templates)

    def source(self, chosen: str | None, tools: Sequence[Any] | None) -> str:
        """The Jinja source to use. chosen: a name, or source itself. Raises TokenizerError when there is none."""
        if chosen is not None:
            return self.templates.get(chosen, chosen)
        for name in ("tool_use", "default") if tools is not None else ("default",):
            if name in self.templates:
                return self.templates[name]
        if self.templates:
            names = ", ".join(sorted(self.templates))
            raise TokenizerError(f"[chat_template] none of the templates is the default, they are {names}, name one")
        raise TokenizerError(
            "[chat_template] the model's folder has no chat template, got messages, pass chat_template= or plain text"
        )

    def render(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text. Arguments as in Tokenizer.apply_chat_template. Raises TokenizerError."""
        source = self.source(chat_template, tools)
        chat = _messages(messages)
        if continue_final_message and add_generation_prompt:
            raise TokenizerError(
                "[chat_template] continue_final_message and add_generation_prompt exclude each other, got both, "
                "pass one"
            )
        ending = _mark_end(chat, continue_final_message, source) if continue_final_message else None
        text = _render(
            source,
            {
                **_plain(dict(variables or {})),
                "messages": chat,
                "tools": None if tools is None else [_tool(tool) for tool in tools],
                "documents": _documents(documents),
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return text if ending is None else _cut_at_end(text, ending)


def read_chat_template(folder: Path, configured: Any) -> ChatTemplate | None:
    """The templates of a folder, None if it has none. configured: chat_template of tokenizer_config.json.

    chat_template.jinja and additional_chat_templates/*.jinja win over chat_template.json, and that over the rest.
    Raises TokenizerError.
    """
    templates: dict[str, Any] = {}
    if isinstance(configured, list):
        try:
            templates = {entry["name"]: entry["template"] for entry in configured}
        except (TypeError, KeyError):
            raise _wrong("tokenizer_config.json", configured) from None
    elif configured is not None:
        templates = {"default": configured}
    if (folder / "chat_template.json").is_file():
        value = read_json_object(folder / "chat_template.json", TokenizerError).get("chat_template")
        templates = dict(value) if isinstance(value, dict) else {"default": value}
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _read(path) for name, path in files.items() if path.is_file()}
    templates = found or templates
    for value in templates.values():
        if not isinstance(value, str):
            raise _wrong("chat_template", value)
    return ChatTemplate(templates) if templates else None


def _wrong(where: str, value: Any) -> TokenizerError:
    return TokenizerError(
        f"[{where}] chat_template must be text or a list of objects with name and template, got {value!r:.60}, "
        f"correct it"
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise TokenizerError(f"[{path.name}] {path} cannot be read: {error.strerror}, check the file") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"[{path.name}] must be UTF-8, {path} is not at byte {error.start}, save it again"
        ) from error


def _render(source: str, variables: dict[str, Any]) -> str:
    from .template_growth import MAX_TEXT, weight
    from .template_sandbox import LimitError, Limits

    if len(source.encode("utf-8", "replace")) > MAX_BYTES:
        raise TokenizerError(
            f"[chat_template] a template may have {MAX_BYTES} bytes, got {len(source)} characters, shorten it"
        )
    try:
        allowed = Limits(weight(variables, MAX_TEXT))
        return _environment().stream(_compiled(source), variables, allowed)
    except LimitError as error:
        raise TokenizerError(f"[chat_template] a template may not do this: {error}, use another template") from None
    except RecursionError:
        raise TokenizerError("[chat_template] the template calls itself too deeply, use another template") from None
    except Exception as error:  # templates are programs: they can raise anything
        kind = type(error).__name__
        raise TokenizerError(
            f"[chat_template] the template fails on these messages with {kind}: {error}, change them or the template"
        ) from error


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _environment() -> LimitedEnvironment:
    """Jinja2 takes time to import, so it is done here."""
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.utils import Namespace

    from .template_sandbox import LimitedEnvironment, limits

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(format: str) -> str:
        if len(format) > 200 or re.search(r"%\W*\d{3}", format):
            raise TemplateError("strftime_now wants a short format")
        return datetime.now().strftime(format)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class TemplateNamespace(Namespace):
        """Refuses private names, and values that stand for too much."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            for name, value in dict(*rest, **kwargs).items():
                check(name, value)
            Namespace.__init__(self, *rest, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name, value)
            Namespace.__setitem__(self, name, value)

    def check(name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold the private name {name!r}")
        limits().weigh(value)

    environment = LimitedEnvironment()
    environment.add_filter("tojson", tojson)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals["namespace"] = TemplateNamespace
    return environment


def _messages(messages: Any) -> list[dict[str, Any]]:
    """Plain copies of the messages, without entries that are None. Raises TokenizerError for what are no messages."""
    messages = getattr(messages, "messages", messages)
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        got = f"{messages!r:.60}" if not messages else f"a {type(messages).__name__}"
        raise TokenizerError(f"[chat_template] messages must be a list with at least one message, got {got}, pass one")
    chat = []
    for message in messages:
        plain = _plain(message)
        if not isinstance(plain, dict):
            raise TokenizerError(
                f"[chat_template] a message must be a dict with role and content, got {message!r:.60}, pass dicts"
            )
        plain = {key: value for key, value in plain.items() if value is not None}
        reasoning = next((plain[key] for key in REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _plain(value: Any, depth: int = 0) -> Any:
    """Builtin types only: a template must not reach methods of other objects."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if depth > 100:
        raise TokenizerError("[chat_template] messages must not be nested more than 100 deep, got more, flatten them")
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump(), depth + 1)
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return _plain(value.item(), depth + 1)
    return f"<{type(value).__name__}>"


def _tool(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _plain(tool)
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        from .function_schema import function_schema

        return function_schema(tool)
    raise TokenizerError(
        f"[chat_template] tools must be JSON schemas or functions, got {tool!r:.60}, pass its JSON schema as a dict"
    )


def _documents(documents: Sequence[Any] | None) -> Any:
    for document in documents or ():
        if not isinstance(document, Mapping):
            raise TokenizerError(
                f"[chat_template] documents must be dicts with title and text, got {document!r:.60}, pass dicts"
            )
    return None if documents is None else [_plain(document) for document in documents]


def _mark_end(chat: list[dict[str, Any]], name: bool | str, source: str) -> str:
    """Put TAG at the end of the last message's text (under `name`, usually "content"), which is given back."""
    key = name if isinstance(name, str) else "content"
    last = chat[-1]
    text = last.get(key)
    if text is None:
        raise TokenizerError(f"[continue_final_message] the last message must have {key}, it has none, add it")
    keys = [key] if key not in REASONING else [other for other in REASONING if last.get(other) == text]
    if not any(key in source for key in keys):
        raise TokenizerError(f"[continue_final_message] the chat template does not use {key}, name another field")
    if isinstance(text, str):
        for key in keys:
            last[key] = text + TAG
        return text
    for block in reversed(text):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text = block["text"]
            block["text"] = text + TAG
            return str(text)
    raise TokenizerError("[continue_final_message] the last message must have text, it has none, add it")


def _cut_at_end(text: str, ending: str) -> str:
    """The text up to TAG; without the spaces before it if the template cut those after it."""
    at = text.rfind(TAG.strip())
    if at < 0 or ending.strip() not in text:
        raise TokenizerError(
            f"[continue_final_message] the template must keep the last message, it changes {ending.strip()!r:.60}, "
            f"change the message or the template"
        )
    return text[:at] if text[at : at + len(TAG)] == TAG else text[:at].rstrip()
