"""Why a row is not a Pair: named reasons, so that every row of a source is either kept or accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """One name a fault. `structural` ones are mistakes in the rows; the others are choices of the recipe."""

    unparsable = "unparsable"
    too_long = "longer than a row may be"
    invalid_utf8 = "invalid UTF-8"
    lone_surrogate = "lone surrogate"
    missing = "missing"
    null = "null"
    not_text = "not text"
    media = "picture, sound or video"
    empty_prompt = "empty prompt"
    empty_chosen = "empty chosen"
    empty_rejected = "empty rejected"
    empty_completion = "empty completion"
    identical = "chosen equals rejected"
    prompts_differ = "prompts differ"
    given_twice = "given twice, differently"
    roles = "roles cannot be parsed"
    field = "a message says more than can be read"
    label_unknown = "label not understood"
    label_disagrees = "label and scores disagree"
    template = "the chat template refuses it"
    altered = "the chat template alters the text"
    same_tokens = "chosen and rejected are the same tokens"
    tie = "tie"
    weak = "weak preference"
    post_cap = "more pairs of one post than wanted"
    duplicate = "duplicate pair"
    contradiction = "contradicts another pair"
    leak = "prompt is held out"
    completion_lost = "no room for the completion"
    equal_after_cutting = "completions equal after cutting"

    @property
    def structural(self) -> bool:
        """Whether `on_bad=error` stops at it."""
        return self not in _CHOICES


_CHOICES = frozenset(
    {
        Reason.tie,
        Reason.weak,
        Reason.post_cap,
        Reason.duplicate,
        Reason.contradiction,
        Reason.leak,
        Reason.completion_lost,
        Reason.equal_after_cutting,
    }
)


@dataclass(frozen=True)
class Refusal:
    """A row that is not used: why, in which field, and what was seen there."""

    reason: Reason
    field: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value


class RowRefused(Exception):
    """Carries a Refusal out of the field readers; each source turns it back into a value."""

    def __init__(self, reason: Reason, field: str = "", detail: str = "") -> None:
        super().__init__(reason.value)
        self.refusal = Refusal(reason, field, detail)
