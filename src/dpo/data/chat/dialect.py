"""In which form a chat template reads a message: found by showing it one, for templates do not say."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from dpo.data.refusal import Reason, RowRefused

Turns = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Render = Callable[[Turns, Tools, bool], str]

_QUESTION, _TEXT = "A question?", ("Parts one,", " and two.")
_CALL, _KEY, _VALUE = "find_it", "which_key", "which value"
TOOL = {
    "type": "function",
    "function": {
        "name": _CALL,
        "description": "Finds it.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "Which."}}},
    },
}


class Dialect:
    """What `render` (the bare template) wants: content as text or parts, arguments of calls as objects or JSON text."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def adapted(self, turns: Turns) -> Turns:
        """Turns as the template reads them."""
        return [self._adapted(turn) for turn in turns]

    def _adapted(self, turn: dict[str, Any]) -> dict[str, Any]:
        if len(turn) == 2 and isinstance(turn["content"], str) and not self._parts_only:
            return turn
        adapted = dict(turn)
        content = turn["content"]
        if isinstance(content, str) and self._parts_only:
            adapted["content"] = [{"type": "text", "text": content}]
        elif not isinstance(content, str) and not self._takes_parts:
            adapted["content"] = "".join(part["text"] for part in content)
        if "tool_calls" in turn:
            as_text, as_object, empty = self._calls
            adapted["tool_calls"] = [_with_arguments(call, as_text, as_object) for call in turn["tool_calls"]]
            if content == "":
                adapted["content"] = empty
        if reasoning := turn.get("reasoning_content"):
            # Names that one field goes by; transformers gives the first two itself.
            adapted |= {"thinking": reasoning, "reasoning": reasoning}
        return adapted

    @functools.cached_property
    def _parts_only(self) -> bool:
        """Whether a text is only shown as a part: models that also read pictures."""
        text = _TEXT[0]
        return not self._shows([text], self._asked(text)) and self._shows([text], self._asked([_part(text)]))

    @functools.cached_property
    def _takes_parts(self) -> bool:
        return self._shows([text.strip() for text in _TEXT], self._asked([_part(text) for text in _TEXT]))

    @functools.cached_property
    def _calls(self) -> tuple[bool, bool, str | None]:
        """(arguments may be JSON text, they may be an object, what the content of a call without text is)."""
        text = json.dumps({_KEY: _VALUE})
        for empty in (None, ""):
            from_text, from_object = (self._try(self._called(given, empty)) for given in (text, {_KEY: _VALUE}))
            # Python's own words for an object are not JSON.
            as_object = from_object is not None and all(word in from_object for word in (_CALL, _KEY, _VALUE))
            as_object = as_object and not any(word in str(from_object) for word in (f"'{_KEY}'", "None"))
            # A template made for objects may quote a text, or set braces around it.
            same = from_text == from_object if as_object else "None" not in str(from_text)
            as_text = from_text is not None and _CALL in from_text and text in from_text and same
            if as_text or as_object:
                return as_text, as_object, empty
        return True, True, ""

    def _called(self, arguments: Any, content: str | None) -> Turns:
        call = {"id": "call00001", "type": "function", "function": {"name": _CALL, "arguments": arguments}}
        return [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": content, "tool_calls": [call]},
        ]

    def _asked(self, content: Any) -> Turns:
        return [{"role": "user", "content": content}]

    def _shows(self, texts: list[str], turns: Turns) -> bool:
        rendered = self._try(turns)
        return rendered is not None and all(text in rendered for text in texts)

    def _try(self, turns: Turns) -> str | None:
        try:
            return self._render(turns, None, False)
        except Exception:  # noqa: BLE001 - a template that cannot read this form is the answer looked for
            return None


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with_arguments(call: dict[str, Any], as_text: bool, as_object: bool) -> dict[str, Any]:
    """The call with its arguments as they were given, or in the other form where the template needs that."""
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str) and not as_text:
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            name = call["function"]["name"]
            raise RowRefused(
                Reason.template, "tool_calls", f"arguments of {name} are not JSON, and it needs an object"
            ) from None
    elif not isinstance(arguments, str) and not as_object:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def strings(found: Any) -> list[str]:
    """Every text in plain data, keys too."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, dict):
        return [text for pair in found.items() for one in pair for text in strings(one)]
    return [text for one in found for text in strings(one)] if isinstance(found, list) else []


def mapped(found: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text changed."""
    if isinstance(found, str):
        return change(found)
    if isinstance(found, dict):
        return {change(key): mapped(value, change) for key, value in found.items()}
    return [mapped(one, change) for one in found] if isinstance(found, list) else found
