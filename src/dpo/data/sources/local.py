"""Your own rows, in any of the shapes that conf/dataset/local.yaml lists, recognised by their columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo.config.datasets import Local
from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.conversation import answer, split_conversations
from dpo.data.sources.fields import build_pair, messages, refusals_returned, text, value
from dpo.data.sources.hh_rlhf import TURN, split_transcripts

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "response_a",
    "response_b",
    "label",
    "conversations",
    "question",
    "system",
    "strength",
)


class CsvRow(dict[str, Any]):
    """A row of a CSV file, where a message list can only stand as JSON text."""


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Local) -> Pair | Refusal:
    """One row of any shape -> Pair; the group is the prompt, everything else in the row goes to `meta`."""
    row = _renamed(row, dataset.columns)
    if isinstance(row, CsvRow):
        row = _with_lists(row)
    prompt, chosen, rejected, strength = _read(row, dataset)
    if row.get("strength") not in (None, ""):
        strength = _strength(row, dataset)
    system = row.get("system")
    if system and prompt and prompt[0].role != "system":
        prompt = [Message("system", text(system, "system")), *prompt]
    meta = {key: found for key, found in row.items() if key not in COLUMNS and isinstance(found, (str, int, float))}
    return build_pair(row_id, prompt, chosen, rejected, None, strength, meta)


def _read(row: Mapping[str, Any], dataset: Local) -> tuple[list[Message], str, str, float]:
    if "conversations" in row:
        prompt = messages(value(row, "conversations"), "conversations", "from", "value")
        return prompt, *_answers(row, prompt), 1.0
    if "prompt" in row or "question" in row:
        prompt = _prompt(row, "prompt" if "prompt" in row else "question")
        if any(name in row for name in ("response_a", "response_b", "label")):
            return prompt, *_labelled(row, prompt, dataset)
        return prompt, *_answers(row, prompt), 1.0
    if "chosen" not in row and "rejected" not in row:
        seen = ", ".join(str(key) for key in row) or "none"
        raise RowRefused(Reason.missing, "prompt", f"columns are {seen}; name yours in dataset.columns")
    chosen, rejected = value(row, "chosen"), value(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not TURN.search("\n\n" + chosen) and not TURN.search("\n\n" + rejected):
            raise RowRefused(Reason.missing, "prompt")
        return *split_transcripts(text(chosen, "chosen"), text(rejected, "rejected")), 1.0
    return *split_conversations(chosen, rejected), 1.0


def _strength(row: Mapping[str, Any], dataset: Local) -> float:
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
        return [Message("user", text(found, name))]
    share_gpt = isinstance(found, Sequence) and bool(found) and isinstance(found[0], Mapping) and "from" in found[0]
    return messages(found, name, *(("from", "value") if share_gpt else ("role", "content")))


def _answers(row: Mapping[str, Any], prompt: Sequence[Message]) -> tuple[str, str]:
    return answer(value(row, "chosen"), "chosen", prompt), answer(value(row, "rejected"), "rejected", prompt)


def _labelled(row: Mapping[str, Any], prompt: Sequence[Message], dataset: Local) -> tuple[str, str, float]:
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
            raise RowRefused(Reason.missing, theirs)
        renamed[ours] = row[theirs]
    return CsvRow(renamed) if isinstance(row, CsvRow) else renamed


def _with_lists(row: CsvRow) -> Mapping[str, Any]:
    """Cells that hold message lists as JSON; chosen and rejected only together, so that no answer is misread."""
    lists = {name: parsed for name in COLUMNS if (parsed := _message_list(row.get(name))) is not None}
    if ("chosen" in lists) != ("rejected" in lists):
        lists = {name: parsed for name, parsed in lists.items() if name not in ("chosen", "rejected")}
    return {**row, **lists}


def _message_list(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(("[{", '{"')):
        return None
    try:
        parsed = json.loads(cell)
    except ValueError:
        return None
    items = parsed if isinstance(parsed, list) else [parsed]
    keys = ({"role", "content"}, {"from", "value"})
    return parsed if all(isinstance(item, dict) and any(k <= item.keys() for k in keys) for item in items) else None


def check_columns(columns: Mapping[str, str]) -> str | None:
    """What is wrong with `dataset.columns`, in one line, or None."""
    from dpo.config.nearest import nearest

    for ours in columns:
        if ours not in COLUMNS:
            return f"dataset.columns.{ours}: not one of our columns{nearest(ours, COLUMNS)}"
    return None
