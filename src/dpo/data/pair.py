"""The two nouns of preference data: a Pair of texts and a TokenPair of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is JSON text, `as_text` whether the row gave it as that or as an object."""

    name: str
    arguments: str
    as_text: bool = False
    id: str | None = None


@dataclass(frozen=True)
class Extras:
    """What a message can say besides its role and text.

    `reasoning` is what stands before the content, `parts` the texts the content was given in where they were several.
    """

    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""
    parts: tuple[str, ...] = ()


NOTHING_MORE = Extras()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: role is system, user, assistant, tool or function."""

    role: str
    content: str
    extras: Extras = NOTHING_MORE


Answer = str | tuple[Message, ...]
"""What an assistant says: one text, or messages where it is more than that (calls, results of tools, reasoning)."""


def messages_of(answer: Answer) -> tuple[Message, ...]:
    """An answer as messages; the first and the last are the assistant's."""
    return (Message("assistant", answer),) if isinstance(answer, str) else answer


@dataclass(frozen=True)
class Pair:
    """One preference: after `prompt`, `chosen` is the better answer and `rejected` the worse.

    `id` is source:split:row. `strength` in [0.5, 1] is the probability that chosen is better (1 unless the
    source says less). Pairs that share a `group` (post, question, prompt) never sit in different splits.
    `notes` is what the report is to say about its row. `tools` are those the assistant may call, a list as JSON text.
    A row that is a single answer, wanted or not, has it as chosen or as rejected, and the other side is empty; losses
    of pairs refuse it.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: Answer
    rejected: Answer
    group: str
    strength: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tools: str = ""


Spans = tuple[tuple[int, int], ...]
"""(first, one past last) of runs of tokens, in order."""


@dataclass(frozen=True)
class TokenPair:
    """A Pair as token ids; a sequence is prompt_ids + chosen_ids (or + rejected_ids), none of them empty but the side
    that a single answer lacks.

    Completion ids end with the end-of-turn token unless the completion was truncated. `given` are the spans of chosen
    and of rejected that were put there for the policy, such as a tool's results: it sees them, and they do not count
    in the log-prob. The first token of a completion is never among them.
    """

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    strength: float = 1.0
    given: tuple[Spans, Spans] = ((), ())

    @property
    def places(self) -> tuple[Sequence[int], Sequence[int]]:
        """Places of the tokens of chosen and of rejected that count."""
        return _outside(len(self.chosen_ids), self.given[0]), _outside(len(self.rejected_ids), self.given[1])

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens of chosen and of rejected that count."""
        chosen, rejected = self.places
        return len(chosen), len(rejected)

    @property
    def content(self) -> tuple[object, ...]:
        """All that a log-prob of the pair hangs on."""
        ids = (self.prompt_ids, self.chosen_ids, self.rejected_ids)
        return (*ids, self.given) if any(self.given) else ids


def by_part(ids: Iterable[str]) -> dict[str, list[int]]:
    """Places of ids by the part of a mixture they come from, whose name they begin with; one part of any other data."""
    found: dict[str, list[int]] = {}
    for place, pair_id in enumerate(ids):
        found.setdefault(pair_id.partition(":")[0], []).append(place)
    return found


def within(spans: Spans, length: int) -> Spans:
    """Spans of an answer that is cut to `length` tokens."""
    return tuple((first, min(end, length)) for first, end in spans if first < length)


def _outside(length: int, spans: Spans) -> Sequence[int]:
    if not spans:
        return range(length)
    inside = {place for first, end in spans for place in range(first, end)}
    return [place for place in range(length) if place not in inside]
