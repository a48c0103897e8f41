"""Reading one field of a source row: present, text, valid Unicode; and the checks two answers must pass."""

from __future__ import annotations

import difflib
import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal, RowRefused

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
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
MORE_THAN_TEXT = ("tools", "functions", "images", "image", "audio", "audios", "video", "videos")
NOTHING: tuple[Any, ...] = (None, "", [], {}, ())
Source = TypeVar("Source", bound=Callable[..., Any])


def refusals_returned(source: Source) -> Source:
    """Let the field readers raise, and the source still be a function from row to Pair or Refusal."""

    @functools.wraps(source)
    def convert(*args: Any) -> Pair | Refusal:
        try:
            _check_columns(args[0])
            return source(*args)
        except RowRefused as refused:
            return refused.refusal

    return convert  # type: ignore[return-value]


def _check_columns(row: Any) -> None:
    """Refuse a row that says more than its texts: tools that may be called, pictures, sounds."""
    if isinstance(row, Mapping):
        for name in MORE_THAN_TEXT:
            if row.get(name) not in NOTHING:
                raise RowRefused(Reason.field, name, "texts are read")


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


def messages(found: Any, name: str, role_key: str = "role", text_key: str = "content") -> list[Message]:
    """A message list as Messages; roles of ShareGPT and of other dialects are translated."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise RowRefused(Reason.not_text, name, f"{type(found).__name__} is not a message list")
    turns = []
    for index, item in enumerate(found):
        where = f"{name}[{index}]"
        if not isinstance(item, Mapping):
            raise RowRefused(Reason.not_text, where, f"{type(item).__name__} is not a message")
        role = ROLES.get(text_field_at(item, role_key, where).lower())
        if role is None:
            raise RowRefused(Reason.roles, where, f"{item[role_key]!r:.40}")
        for key, more in item.items():
            # Tool calls or reasoning left out in silence would teach half an answer.
            if key not in (role_key, text_key) and more not in NOTHING:
                raise RowRefused(Reason.field, f"{where}.{key}", f"{role_key} and {text_key} are read")
        turns.append(Message(role, text_field_at(item, text_key, where)))
    return turns


def text_field_at(row: Mapping[str, Any], name: str, where: str) -> str:
    """Like text_field, with the place of the row inside its field in the refusal."""
    if name not in row:
        raise RowRefused(Reason.missing, f"{where}.{name}")
    return text(row[name], f"{where}.{name}")


def same_text(one: str, other: str) -> bool:
    """Equal but for white space."""
    # Texts that differ nearly always do so in their first words.
    return one == other or (one.split(None, 4)[:4] == other.split(None, 4)[:4] and one.split() == other.split())


def says_something(text: str) -> bool:
    """Whether there is more in a text than white space and characters without width."""
    if text.isascii():
        return bool(text) and not text.isspace()
    return not all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def build_pair(
    row_id: str,
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    group: str | None = None,
    strength: float = 1.0,
    meta: dict[str, Any] | None = None,
    single: bool = False,
) -> Pair:
    """The last checks every source shares: nothing empty, answers that differ, a prompt that somebody asked.

    `single`: of a single answer, the other side of which is "".
    """
    if not any(turn.role == "user" and says_something(turn.content) for turn in prompt):
        raise RowRefused(Reason.empty_prompt, "prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not (single and answer == "") and not says_something(answer):
            raise RowRefused(EMPTY[name], name)
    if same_text(chosen, rejected):
        raise RowRefused(Reason.identical, "rejected")
    turns = tuple(prompt)
    return Pair(row_id, turns, chosen, rejected, prompt_key(turns) if group is None else group, strength, meta or {})


@functools.lru_cache(maxsize=1)  # asked for a pair's group and again by the checks between rows
def prompt_key(prompt: tuple[Message, ...]) -> str:
    """A prompt as one string, equal for prompts that differ only in white space."""
    return "\n".join(f"{turn.role}: {' '.join(turn.content.split())}" for turn in prompt)
