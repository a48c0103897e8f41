"""The preference data shipped in the package: prompt, chosen, rejected as text, with provenance and a subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Dataset
from dpo.data.pair import Message, Pair
from dpo.data.refusal import Refusal
from dpo.data.sources.fields import build_pair, refusals_returned, text_field

TEXTS = ("prompt", "chosen", "rejected")


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Dataset) -> Pair | Refusal:
    """The group is the subject: all prompts about one subject stay in one split."""
    prompt, chosen, rejected = (text_field(row, name) for name in TEXTS)
    meta = {key: row[key] for key in row if key not in TEXTS}
    return build_pair(row_id, [Message("user", prompt)], chosen, rejected, text_field(row, "subject"), meta=meta)
