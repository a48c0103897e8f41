"""Whether all that was given stands in what a chat template made of the conversation."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from dpo.data.chat.dialect import TOOL, Tools, Turns
from dpo.data.refusal import RowRefused
from dpo.data.sources.messages import described

Lost = dict[int, set[str]]
"""Index of a turn -> its fields of which something is missing; the tools stand under -1."""


def stands(text: str, rendered: str) -> bool:
    """Whether a text occurs, but for white space: templates trim, and some set a line end of their own."""
    return text.strip() in rendered or "".join(text.split()) in "".join(rendered.split())


def stands_as_given(text: str, rendered: str) -> bool:
    """Whether a text occurs with the white space inside it."""
    return text.strip() in rendered


def stands_somehow(value: Any, rendered: str) -> bool:
    """Whether a value occurs in any of the ways in which templates write values: as it is, as JSON, as XML."""
    if isinstance(value, str):
        escaped = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
        marked = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return any(stands(form, rendered) for form in (value, *escaped, marked))
    words = {None: ("null", "None"), True: ("true", "True"), False: ("false", "False")}
    if value is None or isinstance(value, bool):
        return any(word in rendered for word in words[value])
    return str(value) in rendered or json.dumps(value) in rendered


def _leaves(found: Any) -> Iterable[Any]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield key
            yield from _leaves(value)
    elif isinstance(found, list):
        for value in found:
            yield from _leaves(value)
    else:
        yield found


def unsaid(turn: dict[str, Any], rendered: str) -> set[str]:
    """Fields of a turn of which something is missing in `rendered`."""
    content = turn["content"]
    if len(turn) == 2 and isinstance(content, str) and turn["role"] not in ("tool", "function"):
        return set() if stands(content, rendered) else {"content"}
    parts = [content] if isinstance(content, str) else [part["text"] for part in content or []]
    said = {"content": parts, "reasoning_content": [turn.get("reasoning_content") or ""], "tool_calls": []}
    for call in turn.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str) and stands(arguments, rendered):
            arguments = {}
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        said["tool_calls"] += [call["function"]["name"], *_leaves(arguments)]
    return {field for field, values in said.items() if not all(stands_somehow(value, rendered) for value in values)}


class Coverage:
    """Finds what a template leaves out: `render` gives the text of turns, up to where the model answers if told so.

    A template may leave out a role or a field, whatever it says, which a look for the text could miss where it is
    short or stands elsewhere too: each shape of a conversation is rendered once with texts like no other. Or it may cut
    a text for what stands in it, as some do with a part between <think> and </think>: each text is looked for.
    """

    def __init__(self, render: Callable[[Turns, Tools, bool], str]) -> None:
        self._render = render
        self._shapes: dict[tuple[object, ...], Lost] = {}

    def lost(self, turns: Turns, rendered: str, tools: Tools = None, generation: bool = True) -> Lost:
        """What is missing in `rendered`."""
        shape = (generation, bool(tools), *map(_shape, turns))
        if shape not in self._shapes:
            self._shapes[shape] = self._left_out(turns, tools, generation)
        gone = {index: fields for index, turn in enumerate(turns) if (fields := unsaid(turn, rendered))}
        if tools and not all(stands_somehow(name, rendered) for name in _names(tools)):
            gone[-1] = {"tools"}
        return {
            index: gone.get(index, set()) | self._shapes[shape].get(index, set())
            for index in gone | self._shapes[shape]
        }

    def _left_out(self, turns: Turns, tools: Tools, generation: bool) -> Lost:
        """The same of a conversation of this shape whose texts can be told apart."""
        marked = _marked(turns)
        try:
            rendered = self._render(marked, [TOOL] if tools else None, generation)
        except RowRefused:
            return {}  # it renders the conversation itself, so that is what has to show
        found = set(re.findall(r"\w+ \d+ of many\.", rendered))
        gone = {index: {f for f, text in _marks(index, turn) if text not in found} for index, turn in enumerate(marked)}
        if tools and TOOL["function"]["name"] not in rendered:  # type: ignore[index]
            gone[-1] = {"tools"}
        return {index: fields for index, fields in gone.items() if fields}


def _names(tools: list[dict[str, Any]]) -> list[str]:
    return [str(described(tool)["name"]) for tool in tools]


def _shape(turn: dict[str, Any]) -> object:
    if len(turn) == 2:
        return turn["role"]
    return turn["role"], bool(turn["content"]), len(turn.get("tool_calls", ())), "reasoning_content" in turn


def _marks(index: int, turn: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, text like no other) of a turn that `_marked` made."""
    found = [("content", f"Text {index} of many.")] if turn["content"] else []
    found += [("reasoning_content", f"Thought {index} of many.")] if "reasoning_content" in turn else []
    calls = range(len(turn.get("tool_calls", ())))
    return found + [("tool_calls", f"Value {index}{place:03} of many.") for place in calls]


def _marked(turns: Turns) -> Turns:
    marked: Turns = []
    ids: list[str] = []
    for index, turn in enumerate(turns):
        one = {**turn, "content": f"Text {index} of many." if turn["content"] else turn["content"]}
        if "reasoning_content" in turn:
            one["reasoning_content"] = f"Thought {index} of many."
        if "tool_calls" in turn:
            ids = [f"c{index:04}{place:04}" for place in range(len(turn["tool_calls"]))]
            one["tool_calls"] = [_marked_call(call, index, place) for place, call in enumerate(turn["tool_calls"])]
        if "tool_call_id" in turn and ids:
            one["tool_call_id"] = ids.pop(0)
        marked.append(one)
    return marked


def _marked_call(call: dict[str, Any], index: int, place: int) -> dict[str, Any]:
    function = {**call["function"], "arguments": {"which": f"Value {index}{place:03} of many."}}
    own = {"id": f"c{index:04}{place:04}"} if "id" in call else {}
    return {**call, **own, "function": function}
