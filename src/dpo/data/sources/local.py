"""Rows of any of the shapes that conf/dataset/local.yaml lists, recognised by their columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo.config.datasets import ByColumns
from dpo.data.pair import Answer, Message, Pair, messages_of
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.conversation import answer, split_conversations
from dpo.data.sources.fields import (
    TOOLS,
    build_pair,
    nearest_column,
    refusals_returned,
    same_text,
    same_turns,
    says_nothing,
    text,
    value,
)
from dpo.data.sources.hh_rlhf import TURN, is_transcript, prompt_of_transcript, split_transcripts
from dpo.data.sources.messages import messages, tools_of
from dpo.data.sources.written_lists import READ, with_lists

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "response_a",
    "response_b",
    "completion",
    "label",
    "conversations",
    "question",
    "system",
    "strength",
    "tools",
)
SIDES = ("chosen", "rejected")
# Those of them that hold text for the model.
TEXTS = {"prompt", "question", "conversations", "response_a", "response_b", "completion", *SIDES}
# What `label` says of a single completion.
WANTED, UNWANTED = frozenset({"true", "1", "1.0", "yes", "up"}), frozenset({"false", "0", "0.0", "-1", "no", "down"})
NAMED = "prompt: instruction, chosen: good, rejected: bad"
# Of columns such as score_chosen and chosen-rating.
SCORES = ("score", "rating", "reward")
UPSIDE_DOWN = "chosen is scored below rejected"
UNUSED = "strength not used without dataset.soft_labels=true"
TRANSCRIPT = "prompt read as a transcript of Human and Assistant"


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: ByColumns) -> Pair | Refusal:
    """One row of any shape -> Pair; the group is the prompt, everything else in the row goes to `meta`.

    Words in a column that is not read are a note of the pair, and so are answers that begin with their prompt.
    """
    row, written = with_lists(_renamed(row, dataset.columns))
    read, (prompt, chosen, rejected, strength) = _read(row, dataset)
    if row.get("strength") not in (None, ""):
        strength = _strength(row, dataset)
    if row.get("system") not in (None, ""):
        prompt = _with_system(prompt, text(row["system"], "system"))
    unread = [key for key in row if key not in read and key not in ("system", "strength", *TOOLS)]
    notes = tuple(f"column {key} not read" for key in unread if _holds_text(key, row[key]))
    notes += (READ,) if written else ()
    notes += (UPSIDE_DOWN,) if _upside_down(row) else ()
    notes += (
        (UNUSED,) if strength == 1 and row.get("strength") not in (None, "", 1) and float(row["strength"]) < 1 else ()
    )
    notes += () if (repeated := _repeated(prompt, chosen, rejected)) is None else (repeated,)
    meta = {key: row[key] for key in unread if key not in TEXTS and isinstance(row[key], (str, int, float))}
    if any(isinstance(row[key], str) and is_transcript(row[key]) for key in read & {"prompt", "question"} & row.keys()):
        notes = (*notes, TRANSCRIPT)
    single = "completion" in read
    pair = build_pair(row_id, prompt, chosen, rejected, None, strength, meta, single, tools_of(row))
    return replace(pair, notes=notes)


def _holds_text(column: str, found: Any) -> bool:
    """Whether a column that is not read may hold what was meant for the model: words, not names, dates and numbers."""
    if found in (None, "", [], {}):
        return False
    if column in TEXTS or isinstance(found, list | dict):
        return True
    return isinstance(found, str) and len(found.split(None, 1)) > 1


def _upside_down(row: Mapping[str, Any]) -> bool:
    """Whether scores beside the answers say that the rejected one is better."""
    for chosen in row:
        if "chosen" in chosen and any(word in chosen for word in SCORES):
            pair = row[chosen], row.get(chosen.replace("chosen", "rejected"))
            if all(isinstance(found, int | float) for found in pair) and pair[0] < pair[1]:  # type: ignore[operator]
                return True
    return False


def _repeated(prompt: Sequence[Message], chosen: Answer, rejected: Answer) -> str | None:
    """What to say of answers that begin with their question, as those made for models that go on with a text do."""
    asked = prompt[-1].content.strip() if prompt else ""
    sides = [side.strip() for side in (chosen, rejected) if isinstance(side, str) and side]
    if not asked or not sides:
        return None
    if asked in sides:
        return "an answer is its prompt"
    return "answers begin with their prompt" if all(side.startswith(asked) for side in sides) else None


Parts = tuple[list[Message], Answer, Answer, float]


def _read(row: Mapping[str, Any], dataset: ByColumns) -> tuple[set[str], Parts]:
    """The columns of the shape a row has, and what they say."""
    answers = {"chosen", "rejected"}
    if row.get("conversations") is not None:
        prompt = messages(value(row, "conversations"), "conversations")
        return {"conversations", *answers}, (prompt, *_answers(row, prompt), 1.0)
    name = next((name for name in ("prompt", "question") if row.get(name) is not None), None)
    name = name or next((name for name in ("prompt", "question") if name in row), None)
    if name is not None:
        if row.get("completion") is not None:
            prompt = _prompt(row, name)
            return {name, "completion", "label"}, (prompt, *_single(row, prompt), 1.0)
        both = {"response_a", "response_b"}
        # Tables hold a null in each column that a row does not have.
        filled = any(row.get(side) is not None for side in both)
        if filled or ({"label", *both} & row.keys() and not answers & row.keys()):
            prompt = _prompt(row, name)
            return {name, "label", *both}, (prompt, *_labelled(row, prompt, dataset))
        return {name, *answers}, (*_asked(row, name), 1.0)
    if not answers & row.keys():
        seen = ", ".join(str(key) for key in row) or "none"
        raise RowRefused(Reason.missing, "prompt", f"columns are {seen}; name yours, as dataset.columns={{{NAMED}}}")
    chosen, rejected = value(row, "chosen"), value(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not TURN.search("\n\n" + chosen) and not TURN.search("\n\n" + rejected):
            raise RowRefused(Reason.missing, "prompt", nearest_column(row, "prompt"))
        return answers, (*split_transcripts(text(chosen, "chosen"), text(rejected, "rejected")), 1.0)
    return answers, (*split_conversations(chosen, rejected), 1.0)


def _asked(row: Mapping[str, Any], name: str) -> tuple[list[Message], Answer, Answer]:
    """Prompt and answers of a row; where the prompt is a transcript, answers may repeat it."""
    prompt = _prompt(row, name)
    if isinstance(row[name], str) and is_transcript(row[name]):
        sides = [text(value(row, side), side) if isinstance(value(row, side), str) else "" for side in SIDES]
        if all(is_transcript(side) for side in sides):
            shared, chosen, rejected = split_transcripts(*sides)
            if not same_turns(shared, prompt):
                raise RowRefused(Reason.prompts_differ, "chosen")
            return prompt, chosen, rejected
        if all(sides):
            return prompt, *(side.strip() for side in sides)  # type: ignore[return-value]
    return prompt, *_answers(row, prompt)


def _with_system(prompt: list[Message], system: str) -> list[Message]:
    if prompt and prompt[0].role == "system":
        if not same_text(prompt[0].content, system):
            raise RowRefused(Reason.given_twice, "system", "the prompt begins with another system message")
        return prompt
    return [Message("system", system), *prompt]


def _strength(row: Mapping[str, Any], dataset: ByColumns) -> float:
    """The probability that chosen is better, as `dpo.prepare` writes it; without soft labels 1 unless it is a tie."""
    try:
        strength = float(row["strength"])
    except (TypeError, ValueError):
        strength = math.nan
    if not 0.5 <= strength <= 1:
        raise RowRefused(Reason.label_unknown, "strength", f"{row['strength']!r:.40}, expected 0.5 to 1")
    if strength == 0.5 and not dataset.soft_labels:
        raise RowRefused(Reason.tie, "strength")
    return strength if dataset.soft_labels else 1.0


def _prompt(row: Mapping[str, Any], name: str) -> list[Message]:
    found = value(row, name)
    if isinstance(found, str):
        whole = text(found, name)
        return prompt_of_transcript(whole, name) if is_transcript(whole) else [Message("user", whole)]
    return messages(found, name)


def _answers(row: Mapping[str, Any], prompt: Sequence[Message]) -> tuple[Answer, Answer]:
    return answer(value(row, "chosen"), "chosen", prompt), answer(value(row, "rejected"), "rejected", prompt)


def _single(row: Mapping[str, Any], prompt: Sequence[Message]) -> tuple[Answer, Answer]:
    """(completion, "") where it is wanted, ("", completion) where it is not."""
    found = answer(value(row, "completion"), "completion", prompt)
    label = str(value(row, "label")).strip().lower()
    if label not in WANTED | UNWANTED:
        raise RowRefused(Reason.label_unknown, "label", f"{label!r:.40}, expected true or false")
    if says_nothing(messages_of(found)[-1]):
        raise RowRefused(Reason.empty_completion, "completion")
    return (found, "") if label in WANTED else ("", found)


def _labelled(row: Mapping[str, Any], prompt: Sequence[Message], dataset: ByColumns) -> tuple[Answer, Answer, float]:
    label = str(value(row, "label")).strip().lower()
    first = answer(value(row, "response_a"), "response_a", prompt)
    second = answer(value(row, "response_b"), "response_b", prompt)
    if label in (dataset.label_a.lower(), "response_a"):
        return first, second, 1.0
    if label in (dataset.label_b.lower(), "response_b"):
        return second, first, 1.0
    if label != "tie":
        allowed = f"expected {dataset.label_a}, {dataset.label_b} or tie (see dataset.label_a)"
        raise RowRefused(Reason.label_unknown, "label", f"{label!r:.40}, {allowed}")
    if not dataset.soft_labels:
        raise RowRefused(Reason.tie, "label")
    return first, second, 0.5


def _renamed(row: Any, columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise RowRefused(Reason.unparsable, "", f"{type(row).__name__} is not an object")
    if not columns:
        return row
    renamed = {key: found for key, found in row.items() if key not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in row:
            raise RowRefused(Reason.missing, theirs, nearest_column(row, theirs))
        renamed[ours] = row[theirs]
    return renamed


def check_columns(columns: Mapping[str, str]) -> str | None:
    """What is wrong with `dataset.columns`, in one line, or None."""
    from dpo.config.nearest import nearest

    for ours in columns:
        if ours not in COLUMNS:
            return f"dataset.columns.{ours}: not one of our columns{nearest(ours, COLUMNS)}"
    return None
