"""Jinja2 with limits: a chat template, which comes with a model and is not trusted, may neither hang nor eat memory.

Everything a template builds passes through a place that counts: outputs, joined buffers, operators, filters, calls,
loops and literals. No container may stand for more than MAX_TEXT characters and items, however its parts are shared, so
that whatever Python does with one in a single step (printing, comparing, sorting) takes bounded time. Time is the
thread's own, looked at in every loop, call and filter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from .template_growth import CONTAINERS, MAX_TEXT, OPERATOR_GROWTH, filter_growth, method_growth, weight

SECONDS = 0.5
BUDGET = 200_000_000  # characters of all strings built on the way, for an empty input


class LimitError(Exception):
    """A template used more time or memory than it may."""


class Limits:
    """What one rendering has left. size: characters and items of its input."""

    def __init__(self, size: int = 0) -> None:
        self._deadline = time.thread_time() + SECONDS
        self._left = BUDGET + 64 * size

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise LimitError(f"it ran for more than {SECONDS:g} s")

    def charge(self, size: int) -> None:
        """Before a string or list of this size is built."""
        self.tick()
        self._left -= size
        if size > MAX_TEXT:
            raise LimitError(f"it builds a text or list of more than {MAX_TEXT} characters")
        if self._left < 0:
            raise LimitError("it builds too much text on the way")

    def weigh(self, *values: Any) -> None:
        """Refuse containers that stand for too much. Also looks at the time."""
        if any(isinstance(value, CONTAINERS) for value in values) and weight(values, MAX_TEXT) > MAX_TEXT:
            raise LimitError(f"it builds data of more than {MAX_TEXT} characters")
        self.tick()


_LIMITS: ContextVar[Limits | None] = ContextVar("limits", default=None)


def limits() -> Limits:
    """Those of the rendering under way. (While a template is compiled there is none: fresh ones.)"""
    return _LIMITS.get() or Limits()


class Each:
    """What a loop runs over, looking at the time now and then."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        tick = limits().tick
        tick()
        for i, value in enumerate(self._values):
            if i & 15 == 0:
                tick()
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError is what jinja2 expects


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %}, which marks what the assistant says: its text as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _Guards(NodeTransformer):
    """Puts the guards `_each`, `_concat` and `_made` around loops, joined strings and literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _filtered(node.nodes[0], "_concat", node.nodes[1:])

    def _literal(self, node: Any) -> Any:
        self.generic_visit(node)
        plain = all(isinstance(child, (nodes.Const, nodes.Pair)) for child in node.items)
        stored = getattr(node, "ctx", "load") != "load"
        return node if stored or (plain and not isinstance(node, nodes.Dict)) else _filtered(node, "_made")

    visit_List = visit_Tuple = visit_Dict = _literal


def _filtered(node: Any, name: str, arguments: list[Any] | None = None) -> Any:
    return nodes.Filter(node, name, arguments or [], [], None, None).set_lineno(node.lineno)


def _each(values: Any) -> Any:
    return Each(values)


def _concat(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    limits().charge(sum(map(len, texts)))
    return "".join(texts)


def _made(value: Any) -> Any:
    limits().weigh(value)
    return value


class _Dict:
    """The builtin without its other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox as transformers sets it up, with limits. Safe to share between threads."""

    intercepted_binops = frozenset(OPERATOR_GROWTH) | {"-", "/", "//"}

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=self._finalize,
            optimized=False,
        )
        self.filters["sum"] = self._sum
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"_each": pass_context(lambda _, x: _each(x)), "_made": pass_context(lambda _, x: _made(x))}
        self.filters["_concat"] = pass_context(lambda _, *parts: _concat(*parts))
        del self.globals["lipsum"]
        self.globals["dict"] = _Dict()
        self.concat = self._joined  # type: ignore[method-assign]  # jinja2 declares "".join

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter of the environment's own, guarded like the others."""
        self.filters[name] = _guarded(name, function)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Guards().visit(source), *args, **options)

    def _finalize(self, value: Any) -> Any:
        if isinstance(value, str):
            return value
        limits().weigh(value)
        text = str(value)
        limits().charge(len(text))
        return text

    def _joined(self, parts: Iterable[str]) -> str:
        texts = list(parts)
        limits().charge(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        growth = OPERATOR_GROWTH.get(operator)
        if growth is not None:
            limits().charge(growth(left, right))
        result = super().call_binop(context, operator, left, right)
        limits().weigh(result)
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        limits().weigh(*args, *kwargs.values())
        limits().charge(method_growth(__obj, args, kwargs))
        result = super().call(__context, __obj, *args, **kwargs)
        limits().weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and format_map, which the sandbox replaces by its own: with the growth looked at."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        safe: Callable[..., str] = wrapped

        def formatted(*args: Any, **kwargs: Any) -> str:
            limits().charge(method_growth(value, args, kwargs))
            return safe(*args, **kwargs)

        return formatted

    @pass_context
    def _sum(self, context: Any, values: Iterable[Any], attribute: str | None = None, start: Any = 0) -> Any:
        get = None if attribute is None else make_attrgetter(self, attribute)
        for value in values:
            start = self.call_binop(context, "+", start, value if get is None else get(value))
        return start

    def stream(self, template: jinja2.Template, variables: dict[str, Any], allowed: Limits) -> str:
        """The rendered text. Raises LimitError, and whatever else the template raises."""
        token = _LIMITS.set(allowed)
        try:
            parts: list[str] = []
            size = 0
            for part in template.generate(**variables):
                allowed.tick()
                size += len(part)
                if size > MAX_TEXT:
                    raise LimitError(f"it writes more than {MAX_TEXT} characters")
                parts.append(part)
            return "".join(parts)
        finally:
            _LIMITS.reset(token)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its input weighed and its output charged.

    That it takes the context keeps it from being run while a template is compiled.
    """
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def guarded(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        allowed = limits()
        allowed.weigh(value, *args, *kwargs.values())
        allowed.charge(filter_growth(name, value, args, kwargs))
        extra = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = () if wanted is None else (extra[wanted.name],)
        result = function(*first, value, *args, **kwargs)
        if isinstance(result, str):
            allowed.charge(len(result))
        allowed.weigh(result)
        return result

    return guarded
