"""Chosen and rejected as message lists, with or without the prompt in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.data.pair import Message
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.fields import messages, same_text, text


def answer(found: Any, name: str, prompt: Sequence[Message]) -> str:
    """One side's answer: text, one assistant message, or a conversation that repeats the prompt."""
    if isinstance(found, str) or found is None:
        return text(found, name)
    lead, last = split_last(found, name)
    if lead and not same_turns(lead, prompt):
        raise RowRefused(Reason.prompts_differ, name)
    return last


def split_last(found: Any, name: str) -> tuple[list[Message], str]:
    """A conversation as the turns before its last one, and the text of that one, which is the assistant's."""
    if isinstance(found, Mapping):
        found = [found]
    share_gpt = isinstance(found, Sequence) and bool(found) and isinstance(found[0], Mapping) and "from" in found[0]
    turns = messages(found, name, *(("from", "value") if share_gpt else ("role", "content")))
    if not turns or turns[-1].role != "assistant":
        raise RowRefused(Reason.roles, name, f"ends with {turns[-1].role if turns else 'nothing'}")
    return turns[:-1], turns[-1].content


def split_conversations(chosen: Any, rejected: Any) -> tuple[list[Message], str, str]:
    """The prompt two conversations share and their last answers; refused when the prompts differ."""
    (prompt, better), (other, worse) = split_last(chosen, "chosen"), split_last(rejected, "rejected")
    if not same_turns(prompt, other):
        raise RowRefused(Reason.prompts_differ, "rejected")
    return prompt, better, worse


def same_turns(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Same roles and, but for white space, same texts."""
    return len(one) == len(other) and all(
        a.role == b.role and same_text(a.content, b.content) for a, b in zip(one, other, strict=True)
    )
