"""UltraFeedback, binarized: message lists that include the user turn, and the two scores behind the choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Dataset
from dpo.data.pair import Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.conversation import split_conversations
from dpo.data.sources.fields import build_pair, number_field, refusals_returned, same_text, text_field, value
from dpo.data.sources.messages import tools_of


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Dataset) -> Pair | Refusal:
    """Both hub forms: HuggingFaceH4 (with `prompt`, `prompt_id`) and trl-lib (the prompt only in the lists)."""
    better, worse = number_field(row, "score_chosen"), number_field(row, "score_rejected")
    if better < worse:
        raise RowRefused(Reason.label_disagrees, "score_chosen", f"{better:g} against {worse:g}")
    prompt, chosen, rejected = split_conversations(value(row, "chosen"), value(row, "rejected"))
    if "prompt" in row and prompt and not same_text(text_field(row, "prompt"), prompt[-1].content):
        raise RowRefused(Reason.prompts_differ, "prompt")
    if better == worse and not dataset.soft_labels:
        raise RowRefused(Reason.tie, "score_chosen")
    strength = 0.5 if better == worse else 1.0
    meta = {"scores": [better, worse]}
    return build_pair(row_id, prompt, chosen, rejected, None, strength, meta, tools=tools_of(row))
