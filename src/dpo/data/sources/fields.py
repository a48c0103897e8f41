"""Reading one field of a source row: present, text, valid Unicode; and the checks two answers must pass."""

from __future__ import annotations

import difflib
import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dpo.data.pair import NOTHING_MORE, Answer, Message, Pair, messages_of
from dpo.data.refusal import Reason, Refusal, RowRefused

# Names that others give to the three.
ALIKE = {
    "prompt": ("instruction", "question", "query", "input", "user", "text"),
    "chosen": ("good", "preferred", "accepted", "winner", "better", "response_chosen", "positive", "answer_chosen"),
    "rejected": (
        "bad",
        "dispreferred",
        "refused",
        "loser",
        "worse",
        "response_rejected",
        "negative",
        "answer_rejected",
    ),
}
EMPTY = {"prompt": Reason.empty_prompt, "chosen": Reason.empty_chosen, "rejected": Reason.empty_rejected}
MEDIA = ("image", "audio", "video")
TEXT_ONLY = "this project trains text"
TOOLS = ("tools", "functions")
"""Columns that hold what the assistant may call; the second is the older name."""
Source = TypeVar("Source", bound=Callable[..., Any])


def refusals_returned(source: Source) -> Source:
    """Let the field readers raise, and the source still be a function from row to Pair or Refusal.

    What no source may leave out, whether it knows of it or not: pictures, sounds, and tools the assistant may call.
    """

    @functools.wraps(source)
    def convert(row: Any, *args: Any) -> Pair | Refusal:
        try:
            if isinstance(row, Mapping):
                check_columns(row)
            result = source(row, *args)
        except RowRefused as refused:
            return refused.refusal
        if isinstance(result, Pair) and not result.tools and isinstance(row, Mapping):
            for name in TOOLS:
                if not nothing(row.get(name)) and row[name] != "[]":
                    return Refusal(Reason.field, name, "rows of this source have none; dataset=local reads them")
        return result

    return convert  # type: ignore[return-value]


def check_columns(row: Mapping[str, Any]) -> None:
    """Refuse a row that says, in a column of its own, what no text can: pictures, sounds, settings of its template."""
    for key, found in row.items():
        name = str(key).lower()
        if name.removesuffix("s") in MEDIA and not nothing(found):
            raise RowRefused(Reason.media, str(key), TEXT_ONLY)
        if name == "chat_template_kwargs" and not nothing(found):
            raise RowRefused(Reason.field, str(key), "one setting holds for all rows: dataset.chat_template_kwargs")


def nothing(found: Any) -> bool:
    """Whether a value says nothing: tables hold one in each column that a row does not have."""
    return found is None or found is False or (isinstance(found, str | list | tuple | dict) and not found)


def value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that has to be there."""
    try:
        found = row[name]
    except KeyError:
        raise RowRefused(Reason.missing, name, nearest_column(row, name)) from None
    except TypeError:
        raise RowRefused(Reason.unparsable, "", f"{type(row).__name__} is not an object") from None
    if found is None:
        raise RowRefused(Reason.null, name)
    return found


def nearest_column(row: Mapping[str, Any], name: str) -> str:
    """Which column of a row may be meant by one that it lacks."""
    columns = [str(key) for key in row]
    alike = [column for column in columns if column.lower() in ALIKE.get(name, ())]
    close = alike or difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    return f"nearest column: {close[0]}" if close else f"columns are {', '.join(columns[:8]) or 'none'}"


def text(found: Any, name: str) -> str:
    """`found` as valid text, or a refusal naming the field."""
    if found is None:
        raise RowRefused(Reason.null, name)
    if not isinstance(found, str):
        raise RowRefused(Reason.not_text, name, type(found).__name__)
    if not found.isascii():
        _check_unicode(found, name)
    return found


def _check_unicode(found: str, name: str) -> None:
    try:
        found.encode()
    except UnicodeEncodeError as error:
        code = ord(found[error.start])
        # Bytes that were not UTF-8 are read as the surrogates U+DC80 to U+DCFF (PEP 383).
        reason = Reason.invalid_utf8 if 0xDC80 <= code <= 0xDCFF else Reason.lone_surrogate
        raise RowRefused(reason, name, f"U+{code:04X} at character {error.start}") from None


def text_field(row: Mapping[str, Any], name: str) -> str:
    """A field that has to be there and be text; it may be empty."""
    return text(value(row, name), name)


def number_field(row: Mapping[str, Any], name: str) -> float:
    """A field that has to be a finite number."""
    found = value(row, name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < float("inf"):
        raise RowRefused(Reason.not_text, name, f"{found!r:.40} is not a number")
    return float(found)


def text_field_at(row: Mapping[str, Any], name: str, where: str) -> str:
    """Like text_field, with the place of the row inside its field in the refusal."""
    if name not in row:
        raise RowRefused(Reason.missing, f"{where}.{name}")
    return text(row[name], f"{where}.{name}")


def same_text(one: str, other: str) -> bool:
    """Equal but for white space."""
    # Texts that differ nearly always do so in their first words.
    return one == other or (one.split(None, 4)[:4] == other.split(None, 4)[:4] and one.split() == other.split())


def same_turns(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Same roles and, but for white space, same texts; the same calls and whatever else they say."""
    return len(one) == len(other) and all(map(same_turn, one, other))


def same_turn(one: Message, other: Message) -> bool:
    """See `same_turns`."""
    return one.role == other.role and one.extras == other.extras and same_text(one.content, other.content)


def says_something(text: str) -> bool:
    """Whether there is more in a text than white space and characters without width."""
    if text.isascii():
        return bool(text) and not text.isspace()
    return not all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def build_pair(
    row_id: str,
    prompt: Sequence[Message],
    chosen: Answer,
    rejected: Answer,
    group: str | None = None,
    strength: float = 1.0,
    meta: dict[str, Any] | None = None,
    single: bool = False,
    tools: str = "",
) -> Pair:
    """The last checks every source shares: nothing empty, answers that differ, a prompt that somebody asked.

    `single`: of a single answer, the other side of which is "".
    """
    if not any(turn.role == "user" and says_something(turn.content) for turn in prompt):
        raise RowRefused(Reason.empty_prompt, "prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not (single and answer == "") and says_nothing(messages_of(answer)[-1]):
            raise RowRefused(EMPTY[name], name)
    if same_turns(messages_of(chosen), messages_of(rejected)):
        raise RowRefused(Reason.identical, "rejected")
    turns = tuple(prompt)
    key = prompt_key(turns) if group is None else group
    return Pair(row_id, turns, chosen, rejected, key, strength, meta or {}, tools=tools)


def says_nothing(message: Message) -> bool:
    """Whether a message has neither text nor a call."""
    return not message.extras.tool_calls and not says_something(message.content)


@functools.lru_cache(maxsize=1)  # asked for a pair's group and again by the checks between rows
def prompt_key(prompt: tuple[Message, ...]) -> str:
    """A prompt as one string, equal for prompts that differ only in white space."""
    return "\n".join(f"{turn.role}: {' '.join(as_text(turn).split())}" for turn in prompt)


def as_text(message: Message) -> str:
    """All that a message says, in words: reasoning, text and calls."""
    more = message.extras
    if more == NOTHING_MORE:
        return message.content
    thought = [f"<think>\n{more.reasoning}\n</think>"] if more.reasoning else []
    calls = [f"[calls {call.name}({call.arguments})]" for call in more.tool_calls]
    return "\n".join([*thought, *([message.content] if message.content else []), *calls])
