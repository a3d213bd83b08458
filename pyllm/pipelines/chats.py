"""Chats as prompts: telling them from texts, the ids a model reads, and the chat with the model's message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PromptError
from ..tokenization import Tokenizer

Message = Mapping[str, Any]
Chat = Sequence[Message]


def is_chat(given: Any) -> bool:
    """Whether this is one chat: a list of messages, dicts with "role" and "content" (or tool calls)."""
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], Mapping)


def checked(given: Any) -> list[Message]:
    """The messages of a chat. Raises PromptError for messages without a role, or with neither content nor calls."""
    wrong = [
        index
        for index, each in enumerate(given)
        if not isinstance(each, Mapping) or "role" not in each or not each.keys() & {"content", "tool_calls"}
    ]
    if wrong:
        raise PromptError(
            '[text-generation] each message of a chat is a dict with "role" and "content", '
            f"message {', '.join(map(str, wrong))} is not; correct it"
        )
    return list(given)


def continues(chat: Chat, asked: bool | None) -> bool:
    """Whether the model goes on with the last message; when nobody says, if that is the assistant's. Raises PromptError
    for a last message whose content is no text."""
    going_on = chat[-1]["role"] == "assistant" if asked is None else asked
    if going_on and not isinstance(chat[-1].get("content"), str):
        raise PromptError(
            "[text-generation] the last message must have text as its content to be continued, "
            f"got {type(chat[-1].get('content')).__name__}; pass continue_final_message=False for a new message"
        )
    return going_on


def ids(tokenizer: Tokenizer, chat: Chat, asked: bool | None, variables: Mapping[str, Any]) -> list[int]:
    """What the model reads. variables: tools, documents, chat_template and what the template takes. Raises
    TokenizerError for a template that fails or is missing."""
    going_on = continues(chat, asked)
    found = tokenizer.apply_chat_template(
        chat, add_generation_prompt=not going_on, continue_final_message=going_on, tokenize=True, **variables
    )
    assert not isinstance(found, str)  # tokenize=True
    return found


def answered(chat: Chat, asked: bool | None, text: str) -> list[Message]:
    """The chat with the model's text: as a new message, or at the end of the last one."""
    if not continues(chat, asked):
        return [*chat, {"role": "assistant", "content": text}]
    return [*chat[:-1], {"role": chat[-1]["role"], "content": chat[-1]["content"] + text}]
