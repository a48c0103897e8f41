"""Reading messages: the one place that knows what a message can hold, and carries each field or refuses it by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpo.data.pair import NOTHING_MORE, Extras, Message, ToolCall
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.fields import MEDIA, TEXT_ONLY, TOOLS, nothing, text, text_field_at

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function": "function",
    # ShareGPT's turn whose text is the call, as JSON.
    "function_call": "assistant",
}
RESULTS = ("tool", "function")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names that one field goes by."""
FIELDS = {"tool_calls", "function_call", "tool_call_id", "name", *REASONING}
CALL_FIELDS = {"id", "type", "index", "function", "name", "arguments"}


def is_share_gpt(found: Any) -> bool:
    """Whether a message list has ShareGPT's `from` and `value`."""
    first = found[0] if isinstance(found, Sequence) and not isinstance(found, str) and found else None
    return isinstance(first, Mapping) and "from" in first and "role" not in first


def messages(found: Any, name: str) -> list[Message]:
    """A message list as Messages; ShareGPT's field names and roles of other dialects are translated."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise RowRefused(Reason.not_text, name, f"{type(found).__name__} is not a message list")
    names = ("from", "value") if is_share_gpt(found) else ("role", "content")
    return [_message(item, f"{name}[{index}]", *names) for index, item in enumerate(found)]


def _message(item: Any, where: str, role_key: str, text_key: str) -> Message:
    if not isinstance(item, Mapping):
        raise RowRefused(Reason.not_text, where, f"{type(item).__name__} is not a message")
    said = text_field_at(item, role_key, where).lower()
    role = ROLES.get(said)
    if role is None:
        raise RowRefused(Reason.roles, where, f"{item[role_key]!r:.40}")
    if len(item) == 2 and isinstance(item.get(text_key), str) and said != "function_call":
        return Message(role, text(item[text_key], f"{where}.{text_key}"))
    given = {key: value for key, value in item.items() if key not in (role_key, text_key) and not nothing(value)}
    for key in given:
        if key not in FIELDS:
            raise RowRefused(Reason.field, f"{where}.{key}", f"known are {', '.join(sorted(FIELDS))}")
    content, parts = "", tuple[str, ...]()
    if said == "function_call":
        calls = _calls(item.get(text_key), f"{where}.{text_key}")
    else:
        calls = _given_calls(given, where)
        content, parts = _content(item, text_key, where, role, bool(calls))
    answered, name = (_optional(given, key, where) for key in ("tool_call_id", "name"))
    extras = Extras(calls, answered, name, _reasoning(given, where), parts)
    if role != "assistant" and (calls or extras.reasoning):
        raise RowRefused(Reason.roles, where, f"{role} with what only an assistant has: {', '.join(given)}")
    return Message(role, content, extras) if extras != NOTHING_MORE else Message(role, content)


def _optional(given: Mapping[str, Any], key: str, where: str) -> str | None:
    return text(given[key], f"{where}.{key}") if key in given else None


def _reasoning(given: Mapping[str, Any], where: str) -> str:
    found = {key: text(given[key], f"{where}.{key}") for key in REASONING if key in given}
    if len(set(found.values())) > 1:
        raise RowRefused(Reason.given_twice, f"{where}.{list(found)[1]}", f"{' and '.join(found)} differ")
    return next(iter(found.values()), "")


def _content(item: Mapping[str, Any], key: str, where: str, role: str, called: bool) -> tuple[str, tuple[str, ...]]:
    """The text of a message, and the texts of its parts where there are several."""
    found, where = item.get(key), f"{where}.{key}"
    if found is None and called:
        return "", ()
    if key not in item:
        raise RowRefused(Reason.missing, where)
    if isinstance(found, Mapping) and role in RESULTS:
        return json.dumps(found, ensure_ascii=False), ()
    if not isinstance(found, list | tuple):
        return text(found, where), ()
    parts = tuple(_part(part, f"{where}[{index}]") for index, part in enumerate(found))
    return "".join(parts), parts if len(parts) > 1 else ()


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return text(part, where)
    if not isinstance(part, Mapping):
        raise RowRefused(Reason.not_text, where, f"{type(part).__name__} is not a part of a message")
    kind = str(part.get("type") or "text")
    filled = [kind, *(key for key, value in part.items() if not nothing(value))]
    if media := next((name for name in filled if any(word in name for word in MEDIA)), None):
        raise RowRefused(Reason.media, where, f"{media}: {TEXT_ONLY}")
    given = {key for key, value in part.items() if not nothing(value)} - {"type", "text"}
    if kind not in ("text", "input_text", "output_text") or given:
        unknown = kind if not given else ", ".join(sorted(given))
        raise RowRefused(Reason.field, where, f"{unknown}: of a part, type and text are known")
    return text_field_at(part, "text", where)


def _given_calls(given: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    if "tool_calls" in given and "function_call" in given:
        raise RowRefused(Reason.given_twice, f"{where}.function_call", "beside tool_calls")
    key = "tool_calls" if "tool_calls" in given else "function_call"
    return _calls(given[key], f"{where}.{key}") if key in given else ()


def _calls(found: Any, where: str) -> tuple[ToolCall, ...]:
    """One call or a list of them, as JSON or as its text."""
    found = parsed(found, where)
    items = found if isinstance(found, list | tuple) else [found]
    return tuple(_call(item, f"{where}[{index}]") for index, item in enumerate(items))


def _call(item: Any, where: str) -> ToolCall:
    if not isinstance(item, Mapping):
        raise RowRefused(Reason.not_text, where, f"{type(item).__name__} is not a call of a tool")
    inner = item.get("function")
    whole: Mapping[str, Any] = {**item, **inner} if isinstance(inner, Mapping) else item
    for key, value in whole.items():
        if key not in CALL_FIELDS and not nothing(value):
            raise RowRefused(Reason.field, f"{where}.{key}", "of a call, id, type, name and arguments are known")
    if whole.get("type") not in (None, "function"):
        raise RowRefused(Reason.field, f"{where}.type", f"{whole['type']!r:.40}, known is function")
    name = text_field_at(whole, "name", where)
    arguments = whole.get("arguments")
    own = None if whole.get("id") is None else text(whole["id"], f"{where}.id")
    if isinstance(arguments, str):
        return ToolCall(name, text(arguments, f"{where}.arguments"), True, own)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise RowRefused(Reason.not_text, f"{where}.arguments", f"{type(arguments).__name__} is no object")
    return ToolCall(name, _plain_text(arguments or {}, f"{where}.arguments"), False, own)


def _plain_text(found: Any, where: str) -> str:
    try:
        return text(json.dumps(found, ensure_ascii=False), where)
    except (TypeError, ValueError) as error:
        raise RowRefused(Reason.not_text, where, f"{error}"[:80]) from None


def parsed(found: Any, where: str) -> Any:
    """What a JSON text says; anything else as it is."""
    if not isinstance(found, str):
        return found
    try:
        return json.loads(text(found, where))
    except (ValueError, RecursionError):
        raise RowRefused(Reason.unparsable, where, "not JSON") from None


def tools_of(row: Mapping[str, Any]) -> str:
    """The tools a row offers, as JSON text; "" without any. `tools` is a list or its JSON text; `functions`, the older
    name, holds what stands in a tool's `function`."""
    given = {name: found for name in TOOLS if not nothing(row.get(name)) and (found := _tools(row[name], name))}
    if len(given) > 1:
        raise RowRefused(Reason.given_twice, "functions", "beside tools")
    for name, found in given.items():
        if name == "functions":
            found = [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]
        return _plain_text(found, name)
    return ""


def _tools(found: Any, name: str) -> list[Mapping[str, Any]]:
    found = parsed(found, name)
    if nothing(found):
        return []
    if not isinstance(found, list | tuple):
        raise RowRefused(Reason.not_text, name, f"{type(found).__name__} is not a list of tools")
    tools = []
    for index, tool in enumerate(found):
        # Tables hold each tool as text where their parameters differ.
        tool = parsed(tool, f"{name}[{index}]")
        if not isinstance(tool, Mapping):
            raise RowRefused(Reason.not_text, f"{name}[{index}]", f"{type(tool).__name__} is not a tool")
        text_field_at(described(tool), "name", f"{name}[{index}]")
        tools.append(tool)
    return tools


def described(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What says name and parameters of a tool, whether `function` stands around it or not."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def message_dict(message: Message) -> dict[str, Any]:
    """A message as `messages` reads it, and as chat templates know it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    more = message.extras
    if more == NOTHING_MORE:
        return found
    if more.parts:
        found["content"] = [{"type": "text", "text": part} for part in more.parts]
    if more.reasoning:
        found["reasoning_content"] = more.reasoning
    if more.tool_calls:
        found["tool_calls"] = [_call_dict(call) for call in more.tool_calls]
    return found | {key: said for key in ("tool_call_id", "name") if (said := getattr(more, key)) is not None}


def _call_dict(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if call.as_text else json.loads(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return (
        {"type": "function", "function": function}
        if call.id is None
        else {"id": call.id, "type": "function", "function": function}
    )
