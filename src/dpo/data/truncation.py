"""What was cut from pairs that do not fit `max_length`, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cuts:
    """Tokens cut, by pair id. A pair can stand under several heads."""

    dropped_turns: dict[str, int] = field(default_factory=dict)
    shortened_user_turn: dict[str, int] = field(default_factory=dict)
    cut_chosen: dict[str, int] = field(default_factory=dict)
    cut_rejected: dict[str, int] = field(default_factory=dict)
    joined_turns: list[str] = field(default_factory=list)
    control_text: list[str] = field(default_factory=list)
    forced_boundary: list[str] = field(default_factory=list)
    system_left_out: list[str] = field(default_factory=list)
    turn_altered: list[str] = field(default_factory=list)
    spaces_altered: list[str] = field(default_factory=list)
    text_unknown: list[str] = field(default_factory=list)
    answer_added: list[str] = field(default_factory=list)
    reasoning_left_out: list[str] = field(default_factory=list)

    def record(self, pair_id: str, cuts: dict[str, int], met: Iterable[str]) -> None:
        """Note a pair that is used: tokens cut by head, and what else was met on the way, by the lists' names."""
        for head, tokens in cuts.items():
            if tokens > 0:
                getattr(self, head)[pair_id] = tokens
        for name in met:
            getattr(self, name).append(pair_id)

    def add(self, other: Cuts) -> None:
        """Take in what another, of other pairs, holds."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            if isinstance(mine, dict):
                mine.update(theirs)
            else:
                mine.extend(theirs)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: how many pairs and tokens each kind of cut took, then tokens by pair id."""
        cuts = {
            "oldest turns": self.dropped_turns,
            "last user turn": self.shortened_user_turn,
            "chosen": self.cut_chosen,
            "rejected": self.cut_rejected,
        }
        return {
            name: {"pairs": len(cut), "tokens": sum(cut.values()), "tokens_by_id": cut} for name, cut in cuts.items()
        }

    def notes(self) -> dict[str, list[str]]:
        """What else was met on the way, by name: ids of pairs that are used all the same."""
        return {
            "turns of one role joined": self.joined_turns,
            "control token typed in text": self.control_text,
            "answer begins inside a token": self.forced_boundary,
            "system message left out by the chat template": self.system_left_out,
            "turn altered by the chat template": self.turn_altered,
            "white space altered by the chat template": self.spaces_altered,
            "text altered by the tokenizer or unknown to it": self.text_unknown,
            "answer to which the chat template adds, by what it says": self.answer_added,
            "reasoning of an earlier turn left out by the chat template": self.reasoning_left_out,
        }
