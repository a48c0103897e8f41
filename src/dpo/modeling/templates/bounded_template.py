"""Chat templates come with strangers' tokenizers. The sandbox keeps them from files and code; here work is bounded.

Every loop, call and piece of output spends from a budget that grows with the conversation; sizes that one operation can
ask for are checked before it runs. What a template renders within its budget stays as it was, character for character.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from dpo.errors import ConfigError

# Loop steps, calls, and 64 characters of output cost one each. The largest template in use spends some thousands.
BUDGET = 200_000
# Characters or items one operation may make, and a width it may pad to.
MOST = 4_000_000
WIDEST = 10_000
# Characters of a template: the longest in use has 20,000.
LONGEST = 1_000_000


class _State(threading.local):
    """What is left to spend on this thread, and the conversation whose size has not been added to that yet."""

    left = float(BUDGET)
    messages: Any = None


_state = _State()


class TooMuch(Exception):
    """A template that would go on for too long, or make too much."""


def bound_templates() -> None:
    """Have every template that transformers compiles from now on bounded; may be called again."""
    from transformers.utils import chat_template_utils

    original = chat_template_utils._compile_jinja_template
    if not hasattr(original, "bounded"):
        bounded = functools.lru_cache(functools.partial(_compile, original.__wrapped__))
        bounded.bounded = True  # type: ignore[attr-defined]
        chat_template_utils._compile_jinja_template = bounded


def explain(error: Exception) -> str:
    """One line about what went wrong inside a template."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    named = type(error).__name__ in ("TemplateError", "TooMuch")
    line = getattr(error, "lineno", None)
    where = f" in line {line}" if line else ""
    return f"chat template{where}: {first if named else f'{type(error).__name__}: {first}'}"


def _compile(original: Callable[[str], Any], source: str) -> Any:
    if len(source) > LONGEST:
        raise ConfigError(f"chat template: {len(source):,} characters; at most {LONGEST:,} are read")
    environment = original("").environment
    _bound(environment)
    try:
        template = environment.from_string(source)
    except Exception as error:
        raise ConfigError(explain(error)) from error
    render = template.render

    def bounded(*args: Any, **kwargs: Any) -> str:
        before = _state.left, _state.messages
        _state.left, _state.messages = float(BUDGET), kwargs.get("messages")
        try:
            return str(render(*args, **kwargs))
        except Exception as error:
            raise ConfigError(explain(error)) from error
        finally:
            _state.left, _state.messages = before

    template.render = bounded
    return template


def _size(node: Any) -> int:
    """Characters and items of a conversation."""
    if isinstance(node, str):
        return len(node)
    if isinstance(node, dict):
        return 1 + sum(_size(value) for value in node.values())
    if isinstance(node, (list, tuple)):
        return len(node) + sum(_size(value) for value in node)
    return 1


def _spend(cost: float) -> None:
    _state.left -= cost
    if _state.left < 0:
        # Counted only here: most renderings never come near.
        _state.left += _size(_state.messages) / 8
        _state.messages = None
    if _state.left < 0:
        raise TooMuch("more loop steps, calls or output than any conversation needs")


def _steps(items: Any, cost: int) -> Any:
    if isinstance(items, Sized):
        _spend(cost * len(items))
        return items
    return _counted(items, cost) if isinstance(items, Iterable) else items


def _counted(items: Iterable[Any], cost: int) -> Iterator[Any]:
    for item in items:
        _spend(cost)
        yield item


def _shown(value: Any) -> Any:
    _spend(len(value) / 64 if isinstance(value, (str, list, tuple, dict)) else 0.1)
    return value


def _made(value: Any) -> Any:
    if type(value) is str and len(value) <= MOST:
        return value
    if isinstance(value, (str, bytes, list, tuple, dict)) and len(value) > MOST:
        raise TooMuch(f"text or a list of {len(value):,}")
    if isinstance(value, int) and value.bit_length() > 4096:
        raise TooMuch("a number of more than 4096 bits")
    return value


def _check_widths(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TooMuch for an operation whose arguments ask for a huge result, before it is made."""
    given = [*args, *kwargs.values()]
    if any(isinstance(value, int) and abs(value) > WIDEST for value in given) and name in WIDTHS:
        raise TooMuch(f"{name} with {max(abs(value) for value in given if isinstance(value, int)):,}")
    if isinstance(subject, str) and name in ("format", "format_map", "%"):
        wide = any(isinstance(value, int) and abs(value) > WIDEST for value in given)
        if (wide and ("{:{" in subject or "*" in subject)) or re.search(r"\d{5,}", subject):
            raise TooMuch("a format of that width")
    if isinstance(subject, str) and name == "replace" and len(given) >= 2:
        times = subject.count(str(given[0]))
        if times * len(str(given[1])) > MOST:
            raise TooMuch("a replacement of that size")
    joined = given[0] if name == "join" and given else ()
    if isinstance(subject, str) and isinstance(joined, Sized) and len(subject) * len(joined) > MOST:
        raise TooMuch("a join of that size")


WIDTHS = frozenset("center ljust rjust zfill expandtabs indent wordwrap batch slice tojson round truncate".split())


def _binop(original: Callable[..., Any], context: Any, operator: str, left: Any, right: Any) -> Any:
    if operator == "+":
        return _made(left + right)
    if operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int) and len(one) * other > MOST:
                raise TooMuch(f"text or a list of {len(one) * other:,}")
    if operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
        raise TooMuch(f"a power of {right}")
    if operator == "%":
        _check_widths("%", left, right if isinstance(right, tuple) else (right,), {})
    return _made(original(context, operator, left, right))


def _filter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        # Some get the context or the environment first.
        subject = next((value for value in args if isinstance(value, (str, list, tuple))), None)
        _spend(1)
        _check_widths(name, subject, args, kwargs)
        if name == "replace" and isinstance(subject, str):
            _check_widths(name, subject, args[args.index(subject) + 1 :], kwargs)
        return _made(original(*args, **kwargs))

    return bounded


def _bound(environment: Any) -> None:
    call, binop, parse = environment.call, environment.call_binop, environment._parse

    def bounded_call(context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(1 + getattr(environment, "text_size", 0) / 64 * (type(called).__name__ == "Macro"))
        # The sandbox's own `format` stands before the method of the text.
        owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)
        _check_widths(getattr(called, "__name__", ""), owner, args, kwargs)
        return _made(call(context, called, *args, **kwargs))

    environment.call = bounded_call
    environment.call_binop = functools.partial(_binop, binop)
    environment.intercepted_binops = frozenset({"*", "**", "+", "%"})
    # Folding constants would run them while compiling.
    environment.optimized = False
    del environment.globals["lipsum"]  # as much text as it is asked for, and nothing for a conversation
    environment.filters = {name: _filter(name, one) for name, one in environment.filters.items()}
    environment.filters |= {"_steps": _steps, "_shown": _shown, "_made": _made}
    environment._parse = lambda source, name, filename: _instrument(parse(source, name, filename), environment)


def _instrument(root: Any, environment: Any) -> Any:
    """The same template with its loops and outputs counted."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def through(node: Any, name: str, *args: Any) -> Any:
        return nodes.Filter(node, name, [nodes.Const(value) for value in args], [], None, None, lineno=node.lineno)

    def text_in(parts: Iterable[Any]) -> int:
        return sum(len(data.data) for part in parts for data in part.find_all(nodes.TemplateData))

    class Counting(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            cost = 1 + text_in(node.body) // 64
            self.generic_visit(node)
            node.iter = through(node.iter, "_steps", cost)
            return node

        def visit_Output(self, node: Any) -> Any:
            self.generic_visit(node)
            node.nodes = [n if isinstance(n, nodes.TemplateData) else through(n, "_shown") for n in node.nodes]
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return through(node, "_made")

    environment.text_size = text_in([root])
    return Counting().visit(root)
