"""nvidia/HelpSteer3, config preference: two responses and a preference from -3 (first much better) to 3 (second)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Dataset
from dpo.data.pair import Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.fields import build_pair, number_field, refusals_returned, text_field, value
from dpo.data.sources.messages import messages


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Dataset) -> Pair | Refusal:
    """Negative: response1 is better. With soft labels the strength is 1/2 + |preference| / 6: 1/2, 2/3, 5/6, 1."""
    preference = number_field(row, "overall_preference")
    if preference not in (-3, -2, -1, 0, 1, 2, 3):
        raise RowRefused(Reason.label_unknown, "overall_preference", f"{preference:g}, expected -3 to 3")
    if preference == 0 and not dataset.soft_labels:
        raise RowRefused(Reason.tie, "overall_preference")
    prompt = messages(value(row, "context"), "context")
    answers = text_field(row, "response1"), text_field(row, "response2")
    chosen, rejected = answers if preference <= 0 else answers[::-1]
    return build_pair(
        row_id,
        prompt,
        chosen,
        rejected,
        strength=0.5 + abs(preference) / 6 if dataset.soft_labels else 1.0,
        meta={"domain": row.get("domain"), "language": row.get("language"), "preference": preference},
    )
