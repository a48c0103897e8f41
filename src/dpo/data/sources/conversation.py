"""Chosen and rejected as message lists, with or without the prompt in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.data.pair import NOTHING_MORE, Answer, Message
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.fields import same_turn, same_turns, text
from dpo.data.sources.messages import messages


def answer(found: Any, name: str, prompt: Sequence[Message]) -> Answer:
    """One side's answer: text, the assistant's messages, or a conversation that repeats the prompt."""
    if isinstance(found, str) or found is None:
        return text(found, name)
    turns = _conversation(found, name)
    if prompt and same_turns(turns[: len(prompt)], prompt):
        turns = turns[len(prompt) :]
    elif turns[0].role != "assistant":
        raise RowRefused(Reason.prompts_differ, name)
    return _answer(turns, name)


def split_conversations(chosen: Any, rejected: Any) -> tuple[list[Message], Answer, Answer]:
    """The prompt two conversations share and what the assistant does in each from there on.

    The answers begin where the conversations part, with a message of the assistant; between its messages only results
    of tools may stand. Refused when somebody else's words differ.
    """
    one, other = _conversation(chosen, "chosen"), _conversation(rejected, "rejected")
    shared = 0
    while shared < min(len(one), len(other)) and same_turn(one[shared], other[shared]):
        shared += 1
    # Where one ends, or a tool said two different things to one call, the answers begin with the message before.
    while shared and not all(shared < len(turns) and turns[shared].role == "assistant" for turns in (one, other)):
        shared -= 1
        if one[shared].role == "user" or other[shared].role == "user":
            raise RowRefused(Reason.prompts_differ, "rejected")
    try:
        return one[:shared], _answer(one[shared:], "chosen"), _answer(other[shared:], "rejected")
    except RowRefused as refused:
        if refused.refusal.reason is Reason.prompts_differ:
            raise RowRefused(Reason.prompts_differ, "rejected") from None
        raise


def _conversation(found: Any, name: str) -> list[Message]:
    turns = messages([found] if isinstance(found, Mapping) else found, name)
    if not turns or turns[-1].role != "assistant":
        raise RowRefused(Reason.roles, name, f"ends with {turns[-1].role if turns else 'nothing'}")
    return turns


def _answer(turns: Sequence[Message], name: str) -> Answer:
    """An answer's messages; text where they are no more than that."""
    if not turns or any(turn.role in ("user", "system") for turn in turns):
        raise RowRefused(Reason.prompts_differ, name)
    if turns[0].role != "assistant":
        raise RowRefused(Reason.roles, name, f"begins with {turns[0].role}")
    if len(turns) == 1 and turns[0].extras == NOTHING_MORE:
        return turns[0].content
    return tuple(turns)
