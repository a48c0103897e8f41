"""stanfordnlp/SHP: two comments under one post; the one with more votes, although no older, is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Shp
from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.fields import build_pair, number_field, refusals_returned, text_field


@refusals_returned
def to_pair(row: Mapping[str, Any], row_id: str, dataset: Shp) -> Pair | Refusal:
    """`labels=1` means A is preferred, and `score_ratio` >= 1 is preferred over other (dataset card).

    With soft labels the strength is r / (1 + r), Bradley-Terry on the votes: 2/3 for twice as many; weak preferences
    and ties are then kept, for their label says how little they tell.
    """
    label, ratio = number_field(row, "labels"), number_field(row, "score_ratio")
    if label not in (0, 1):
        raise RowRefused(Reason.label_unknown, "labels", f"{label:g}, expected 0 or 1")
    score_a, score_b = number_field(row, "score_A"), number_field(row, "score_B")
    if score_a == score_b:
        if not dataset.soft_labels:
            raise RowRefused(Reason.tie, "score_A")
        if ratio != 1:
            raise RowRefused(Reason.label_disagrees, "score_ratio", f"{ratio:g} of equal votes")
    elif (score_a > score_b) != (label == 1):
        raise RowRefused(Reason.label_disagrees, "labels", f"labels={label:g}, votes {score_a:g} and {score_b:g}")
    if ratio < 1:
        raise RowRefused(Reason.label_disagrees, "score_ratio", f"{ratio:g} is below 1")
    answers = text_field(row, "human_ref_A"), text_field(row, "human_ref_B")
    if ratio < dataset.min_ratio and not dataset.soft_labels:
        raise RowRefused(Reason.weak, "score_ratio", f"{ratio:.3g} is below {dataset.min_ratio:g}")
    chosen, rejected = answers if label == 1 else answers[::-1]
    post = text_field(row, "post_id")
    return build_pair(
        row_id,
        [Message("user", text_field(row, "history"))],
        chosen,
        rejected,
        group=post,
        strength=ratio / (1 + ratio) if dataset.soft_labels else 1.0,
        meta={"post_id": post, "domain": row.get("domain"), "score_ratio": ratio},
    )
