"""Chat templates: rendered text equals transformers', hostile templates end soon, and errors are errors."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import data_path
from test_tokenization import DEFAULT_MODEL
from tokenizer_folders import gpt2, write_folder

from pyllm.errors import TokenizerError
from pyllm.tokenization import Tokenizer, load_tokenizer
from pyllm.tokenization.chat_template import ChatTemplate

USER = {"role": "user", "content": "Hi <|endoftext|> é🦙 "}
# Variables that some of the templates want.
VARIABLES = {"date_string": "1 Jan 2025", "datetime": "now", "functions": "[]"}
CONFIG = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>"}


def get_weather(
    city: str, unit: str = "c", days: list[int] | None = None, at: Literal["day", "night"] = "day", x: int | str = 1
) -> str:
    """Weather of a city.

    Args:
        city: The city, which
            may be anywhere.
        unit: Unit. (choices: ["c", "f"])
        days (list): Days.
        at: When
        x: Two types

    Returns:
        What the weather is.
    """
    return f"{city}{unit}{days}{at}{x}"


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds é & <two>",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "x"}, "b": {"type": "number", "description": "y"}},
            "required": ["a", "b"],
        },
    },
}


def called(arguments: Any, content: str | None) -> list[dict[str, Any]]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return [
        {"role": "user", "content": "1 + 2.5?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "3.5"},
    ]


SAID = {"role": "assistant", "content": "It is. "}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([USER], {}),
    "system": ([{"role": "system", "content": "Be nice.\n"}, USER], {}),
    "turns": ([{"role": "system", "content": "S"}, USER, SAID, {"role": "user", "content": " c\n"}], {}),
    "answered": ([USER, SAID], {}),
    "tools": ([USER], {"tools": [ADD]}),
    "functions": ([{"role": "system", "content": "S"}, USER], {"tools": [get_weather, ADD]}),
    "call": (called({"a": 1, "b": 2.5}, None), {"tools": [ADD]}),
    "call as text": ([*called('{"a": 1}', ""), SAID, USER], {"tools": [ADD]}),
    "documents": ([USER], {"documents": [{"title": "T", "text": "body"}]}),
    "reasoning": ([USER, {"role": "assistant", "content": "<think>x</think>y", "reasoning": "r"}, USER], {}),
    "no user": ([SAID, SAID], {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("chat"), (gpt2(), CONFIG, {"model_type": "gpt2"}))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, {"model_type": "gpt2"})


def render(source: str, messages: list[Any] | None = None, **options: Any) -> str:
    return ChatTemplate({"default": source}).render(messages or [USER], **options)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    """The 17 templates with every conversation: the same text, or both refuse."""
    transformers = pytest.importorskip("transformers", minversion="5")
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    files = sorted(data_path("chat-templates").glob("*.jinja"))
    assert len(files) == 17
    rendered = 0
    for file in files:
        source = file.read_text()
        cases = [
            ({**extra, **ending, "tokenize": tokenize}, messages)
            for messages, extra in CONVERSATIONS.values()
            for ending in ({}, {"add_generation_prompt": True}, {"continue_final_message": True})
            for tokenize in ([False, True] if not ending else [False])
        ]
        for options, messages in cases:
            options |= {"chat_template": source, **VARIABLES}
            try:
                expected = oracle.apply_chat_template(json.loads(json.dumps(messages)), return_dict=False, **options)
            except Exception:
                with pytest.raises(TokenizerError):
                    tokenizer.apply_chat_template(messages, **options)
                continue
            assert tokenizer.apply_chat_template(messages, **options) == expected, (file.name, messages)
            rendered += 1
    assert rendered > 450


def test_schema_equals_transformers() -> None:
    utilities = pytest.importorskip("transformers.utils")
    from pyllm.tokenization.function_schema import function_schema

    assert function_schema(get_weather) == utilities.get_json_schema(get_weather)


def test_where_templates_come_from(tmp_path: Path) -> None:
    files = {"tokenizer.json": (DEFAULT_MODEL / "tokenizer.json").read_bytes()}

    def text(**options: Any) -> Any:
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        return load_tokenizer(tmp_path, config).apply_chat_template([USER], tokenize=False, **options)

    def configure(template: Any) -> None:
        write_folder(tmp_path, (files, {**CONFIG, "chat_template": template}, {}))

    configure(None)
    with pytest.raises(TokenizerError, match="the model's folder has no chat template, got messages, pass"):
        text()
    assert text(chat_template="{{ bos_token }}{{ messages|length }}") == "<|endoftext|>1"
    configure("config")
    assert text() == "config"
    configure([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])
    assert (text(), text(tools=[ADD]), text(chat_template="tool_use")) == ("plain", "tools", "tools")
    configure([{"name": "rag", "template": "r"}])
    with pytest.raises(TokenizerError, match="none of the templates is the default, they are rag, name one"):
        text()
    for wrong in (3, ["x"], [{"name": "x"}], [{"name": "x", "template": 1}]):
        configure(wrong)
        with pytest.raises(TokenizerError, match="chat_template must be text or a list of objects with name"):
            text()
    configure("config")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert text() == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert text() == "jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert (text(), text(tools=[ADD])) == ("jinja", "more")


def test_what_templates_may_use() -> None:
    assert render("{% generation %}{{ messages[0].role }}{% endgeneration %}") == "user"
    assert render("{% for m in messages %}\n  {% continue %}\n{% endfor %}\nx\n") == "x"
    assert render("{{ {'é': '<&>'}|tojson }}") == '{"é": "<&>"}'
    assert render("{{ {'a': [1]}|tojson(indent=2) }}") == '{\n  "a": [\n    1\n  ]\n}'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    counted = (
        "{% set n = namespace(x=0) %}{% for i in range(5) %}{% set n.x = n.x + loop.length %}{% endfor %}{{ n.x }}"
    )
    assert render(counted) == "25"
    assert render("{{ 'a' ~ 1 ~ none ~ ['b', 2]|join('-') }}{{ [[1], [2]]|sum(start=[]) }}") == "a1Noneb-2[1, 2]"
    assert render("{{ '%05.1f|%s' % (1.25, 'x') }}{{ '{:>4}'.format(7) }}{{ 'ab'.center(6) }}.") == "001.2|x   7  ab  ."
    assert render("{{ dict(a=1) }}{{ messages[0]|items|first|first }}") == "{'a': 1}role"
    deep: Any = "x"
    for _ in range(120):
        deep = [deep]
    with pytest.raises(TokenizerError, match="must not be nested more than 100 deep"):
        render("x", [{"role": "user", "content": deep}])


GROW = "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"
BIG = "{% set b = 'a' * 1000000 %}"
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}" * 1
    + "{% endfor %}{% endfor %}",
    "loops with lengths": "{% for i in range(99999) %}{% if loop.length %}{% endif %}{% for j in range(99999) %}"
    "{% if loop.length %}{% endif %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "buffered output": "{% filter upper %}{% for i in range(99999) %}{% for j in range(9999) %}abc{% endfor %}"
    "{% endfor %}{% endfilter %}",
    "lists": "{% set l = range(90000)|list %}{% for i in l %}{% for j in l %}{% for k in l %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "repeated text": "{{ 'a' * 10 ** 9 }}",
    "repeated list": "{{ ([1] * 100000 * 100000)|length }}",
    "power": "{{ 10 ** 100000000 }}",
    "squares": GROW.replace("START", "3").replace("STEP", "n.x * n.x"),
    "doubled text": GROW.replace("START", "'aaaaaaaaaa'").replace("STEP", "n.x ~ n.x"),
    "added text": GROW.replace("START", "'aaaaaaaaaa'").replace("STEP", "n.x + n.x"),
    "blocks": "{% set x %}aaaaaaaaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "nested lists": GROW.replace("START", "[1]").replace("STEP", "[n.x, n.x]"),
    "nested dicts": GROW.replace("START", "1").replace("STEP", "{'a': n.x, 'b': n.x}"),
    "nested calls": GROW.replace("START", "1").replace("STEP", "dict(a=n.x, b=n.x)"),
    "nested namespaces": GROW.replace("START", "1").replace("STEP", "namespace(a=n.x, b=n.x)"),
    "nested arguments": "{% set n = namespace(x=[1]) %}{% macro m() %}{% set n.x = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ m(n.x, n.x) }}{% endfor %}{{ n.x }}",
    "centre": "{{ 'a'|center(1000000000) }}",
    "justify": "{{ 'a'.ljust(2000000000)|length }}",
    "tabs": "{{ '\t\t'.expandtabs(2000000000)|length }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "many fields": BIG + "{{ ('{0}' * 10000).format(b)|length }}",
    "replace": BIG + "{{ b.replace('a', b)|length }}",
    "replace nothing": BIG + "{{ b|replace('', b)|length }}",
    "join": BIG + "{{ range(100000)|join(b)|length }}",
    "indent": "{{ ('a\n' * 100000)|indent(100000)|length }}",
    "indented json": "{{ {'a': 1}|tojson(indent=1000000000) }}",
    "batch": "{{ [1]|batch(1000000000, 0)|list|length }}",
    "sorting": "{{ (['A' * 1000000] * 100000)|sort|length }}",
    "sums": "{% set l = [[1, 2, 3, 4]] * 20000 %}{{ l|sum(start=[])|length }}",
    "mapping": BIG + "{{ range(100000)|map('replace', '0', b)|list|length }}",
    "printing": "{% set l = [1] * 600000 %}{% set x %}{% for i in range(1000) %}{{ l }}{% endfor %}{% endset %}",
    "slices": "{% set l = [1] * 600000 %}{% for i in range(100000) %}{% set x = l[:] %}{% endfor %}",
    "bytes": "{{ (1).to_bytes(1000000000, 'big')|length }}",
    "dates": "{{ strftime_now('%1000000000d') }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "size": "x" * 200_000,
    "classes": "{{ ''.__class__.__mro__ }}",
    "changes": "{{ messages.append(1) }}",
    "private names": "{{ namespace(__class__=1) }}",
    "files": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon(name: str) -> None:
    begin = time.thread_time()
    with pytest.raises(TokenizerError, match=r"\[chat_template\] "):
        render(HOSTILE[name])
    assert time.thread_time() - begin < 3


def test_limits_are_each_thread_s_own() -> None:
    """A template at its limit does not disturb others, and a busy machine is no reason to refuse one."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                assert render("{% for m in messages %}{{ m.role }}{% endfor %}") == "user"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with pytest.raises(TokenizerError, match=r"ran for more than 0\.5 s"):
        render(HOSTILE["loops"])
    for thread in threads:
        thread.join()
    assert not failures


def test_long_conversations_are_no_attack() -> None:
    messages = [{"role": "user", "content": f"{i} " * 200} for i in range(2000)]
    source = (
        "{% set n = namespace(all='') %}{% for m in messages %}{% set n.all = n.all ~ '<' ~ m.role ~ '>' %}"
        "{{ m.content | trim }}\n{% endfor %}{{ n.all | length }}"
    )
    text = render(source, messages)
    assert text.endswith("12000")
    assert len(text) > 1_000_000


def test_failures_are_errors(tokenizer: Tokenizer) -> None:
    def refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(TokenizerError, match=message):
            tokenizer.apply_chat_template(*arguments, **{"chat_template": "{{ messages[0].content }}", **options})

    refused("the template fails on these messages with TemplateError: roles must alternate",
            [USER], chat_template="{{ raise_exception('roles must alternate') }}")  # fmt: skip
    refused("with TemplateSyntaxError: ", [USER], chat_template="{% for %}")
    refused("with UndefinedError: 'x' is undefined", [USER], chat_template="{{ x.y }}")
    refused(r"messages must be a list with at least one message, got \[\]", [])
    refused("messages must be a list with at least one message, got a str", "Hi")
    refused("messages must be a list with at least one message, got a dict", USER)
    refused("a message must be a dict with role and content, got 'Hi'", ["Hi"])
    refused("tools must be JSON schemas or functions, got 3", [USER], tools=[3])
    refused("documents must be dicts with title and text, got 'x'", [USER], documents=["x"])
    refused("exclude each other, got both", [USER], continue_final_message=True, add_generation_prompt=True)
    refused("the last message must have thinking, it has none", [USER], continue_final_message="thinking")
    refused("does not use content, name another", [USER], continue_final_message=True, chat_template="x")
    refused("it changes 'Hi", [USER], continue_final_message=True, chat_template="{{ messages[0].content | upper }}")

    def bare(x: int) -> int:
        return x

    def undescribed(x: int) -> int:
        """Adds."""
        return x

    def unhinted(x) -> int:  # type: ignore[no-untyped-def]
        """Adds.

        Args:
            x: number
        """
        return x

    for function, why in (
        (bare, "no docstring"),
        (undescribed, "does not describe the argument x"),
        (unhinted, "x has no"),
    ):
        refused(f"the function {function.__name__} needs a JSON schema, .*{why}", [USER], tools=[function])


def test_special_tokens_are_spelled_in_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.apply_chat_template([USER], chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert isinstance(ids, list)
    assert ids.count(50256) == 3
    assert tokenizer.decode(ids) == "Hi  é🦙 "


def test_what_would_change_the_ids_is_refused() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL, {})
    template = "{{ messages[0].content }}"
    plain = tokenizer.apply_chat_template([USER], chat_template=template)
    idle = {"return_dict": False, "return_tensors": None, "padding": False, "tokenizer_kwargs": {}}
    assert tokenizer.apply_chat_template([USER], chat_template=template, **idle) == plain
    for wrong in ({"return_tensors": "pt"}, {"return_dict": True}, {"truncation": True, "max_length": 5}):
        with pytest.raises(TokenizerError, match=f"list of all its ids, got .*{next(iter(wrong))}"):
            tokenizer.apply_chat_template([USER], chat_template=template, **wrong)
