"""Anthropic/hh-rlhf: two transcripts, `\\n\\nHuman: ...\\n\\nAssistant: ...`, that should differ in the last turn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Dataset
from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.fields import build_pair, refusals_returned, same_text, text_field

# A turn starts after a blank line; the same words inside a line are text. Cutting at the longest common prefix
# of the two transcripts, as generic tools do, would end inside the answer in a fifth of the rows.
TURN = re.compile(r"\n\n(Human|Assistant):(?= |\n|$)")
ROLE = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(transcript: str, field: str) -> list[Message]:
    """Split a transcript into turns; it must start with Human and end with Assistant."""
    parts = TURN.split(transcript if transcript.startswith("\n\n") else "\n\n" + transcript.lstrip("\n"))
    if parts[0].strip():
        raise RowRefused(Reason.roles, field, "text before the first Human or Assistant turn")
    turns = [Message(ROLE[role], content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]
    if not turns:
        raise RowRefused(Reason.roles, field, "no Human or Assistant turn")
    if turns[0].role != "user" or turns[-1].role != "assistant":
        raise RowRefused(Reason.roles, field, f"starts with {turns[0].role}, ends with {turns[-1].role}")
    return turns


def is_transcript(text: str) -> bool:
    """Whether a text begins with a Human turn and holds an Assistant's, as prompts of this form do."""
    # Nearly no text begins like this, so nearly all are told apart by two look-ups.
    start = text.lstrip("\n")
    return start.startswith("Human:") and any(found[1] == "Assistant" for found in TURN.finditer(text))


def prompt_of_transcript(transcript: str, field: str) -> list[Message]:
    """The turns of a transcript that ends where the assistant is to speak."""
    last = TURN.findall(f"\n\n{transcript}")[-1]
    turns = parse_transcript(transcript if last == "Assistant" else f"{transcript}\n\nAssistant:", field)
    if turns[-1].content:
        raise RowRefused(Reason.roles, field, "a transcript that ends with words of the assistant")
    return turns[:-1]


def split_transcripts(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """The prompt two transcripts share and their last answers; refused when the prompts differ."""
    better, worse = parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected")
    if len(better) != len(worse) or any(
        one.role != other.role or not same_text(one.content, other.content)
        for one, other in zip(better[:-1], worse[:-1], strict=True)
    ):
        raise RowRefused(Reason.prompts_differ, "rejected")
    return better[:-1], better[-1].content, worse[-1].content


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Dataset) -> Pair | Refusal:
    """`chosen`, `rejected` -> Pair; the group is the prompt."""
    prompt, chosen, rejected = split_transcripts(text_field(row, "chosen"), text_field(row, "rejected"))
    return build_pair(row_id, prompt, chosen, rejected)
