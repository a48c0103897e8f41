"""openai/webgpt_comparisons: two answers to a question with scores that sum to zero; 0 is a tie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.datasets import Dataset
from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.sources.fields import build_pair, number_field, refusals_returned, text_field, value

SIDES = ("question", "quotes", "answer", "score", "tokens")


def _flat(row: Any) -> Mapping[str, Any]:
    """The raw file has a pair of objects a line where the hub has `answer_0`, `answer_1`, ... in one row."""
    if isinstance(row, Mapping):
        return row
    if not isinstance(row, list) or len(row) != 2 or not all(isinstance(side, Mapping) for side in row):
        raise RowRefused(Reason.unparsable, "", "neither an object nor a pair of objects")
    flat = {f"{name}_{i}": side[name] for i, side in enumerate(row) for name in SIDES if name in side}
    if "question_0" in flat:
        flat["question"] = flat["question_0"]
    if flat.get("question_0") != flat.get("question_1"):
        raise RowRefused(Reason.prompts_differ, "question")
    return flat


@refusals_returned
def to_pair(row: Any, row_id: str, dataset: Dataset) -> Pair | Refusal:
    """The sign of `score_0` decides. A tie is refused, or with soft labels a 50% label as in arXiv:2112.09332, 3.2.

    Quotes stay out of the prompt: they differ between the sides, so the two prompts would differ. The group is
    the question's id.
    """
    row = _flat(row)
    question = value(row, "question")
    if not isinstance(question, Mapping):
        raise RowRefused(Reason.not_text, "question", f"{type(question).__name__} is not an object")
    prompt = text_field(question, "full_text")
    first, second = number_field(row, "score_0"), number_field(row, "score_1")
    if abs(first + second) > 1e-6:
        raise RowRefused(Reason.label_disagrees, "score_0", f"{first:g} and {second:g} do not sum to 0")
    if first == 0 and not dataset.soft_labels:
        raise RowRefused(Reason.tie, "score_0")
    answers = text_field(row, "answer_0"), text_field(row, "answer_1")
    chosen, rejected = answers if first >= 0 else answers[::-1]
    known = question.get("id") is not None
    return build_pair(
        row_id,
        [Message("user", prompt)],
        chosen,
        rejected,
        group=f"{question.get('dataset')}:{question['id']}" if known else None,
        strength=0.5 if first == 0 else 1.0,
        meta={"question_id": question.get("id"), "dataset": question.get("dataset"), "score": abs(first)},
    )
