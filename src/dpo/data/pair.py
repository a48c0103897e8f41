"""The two nouns of preference data: a Pair of texts and a TokenPair of token ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """One preference: after `prompt`, `chosen` is the better assistant turn and `rejected` the worse.

    `id` is source:split:row. `strength` in [0.5, 1] is the probability that chosen is better (1 unless the
    source says less). Pairs that share a `group` (post, question, prompt) never sit in different splits.
    `notes` is what the report is to say about its row. A row that is a single answer, wanted or not, has it as chosen
    or as rejected, and the other side is empty; losses of pairs refuse it.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str
    strength: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenPair:
    """A Pair as token ids; a sequence is prompt_ids + chosen_ids (or + rejected_ids), none of them empty but the side
    that a single answer lacks.

    Completion ids end with the end-of-turn token unless the completion was truncated.
    """

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    strength: float = 1.0
