"""What an evaluation of a mixture found part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo.config.evaluation import Evaluation
from dpo.data.pair import by_part
from dpo.evaluation.answers import Prompt
from dpo.evaluation.judging import summarise_judges
from dpo.evaluation.pairs import PairRow, summarise_pairs
from dpo.evaluation.verdicts import Judgement, interval, summarise_answers

Row = dict[str, Any]


def of_parts(
    rows: Sequence[PairRow],
    answers: Sequence[Row],
    judged: Sequence[Judgement],
    prompts: Mapping[str, Prompt],
    beta: float,
    config: Evaluation,
) -> Row | None:
    """Part -> figures over its held-out pairs and over answers to its prompts, where some were asked; None of any
    other data."""
    places = by_part(row.id for row in rows)
    if len(places) < 2:
        return None
    asked = by_part(row["prompt"] for row in answers)
    found: Row = {}
    for name, of_pairs in sorted(places.items()):
        settings = (config.resamples, config.confidence, config.seed)
        found[name] = {"pairs": summarise_pairs([rows[i] for i in of_pairs], beta, *settings), "answers": None}
        if own := asked.get(name):
            kept = [answers[i] for i in own]
            found[name]["answers"] = summarise_answers(kept, config)
            found[name] |= summarise_judges(kept, [_of(one, own) for one in judged], [], prompts, interval(config))
    return found


def _of(judgement: Judgement, places: Sequence[int]) -> Judgement:
    """A judgement of some answers alone, the policy's half and the baseline's; a pair judge has an item for both."""
    half = len(judgement.sides) // 2
    of_items = places if len(judgement.items) == len(judgement.sides) else [i for i in places if i < half]
    return replace(
        judgement,
        sides=[judgement.sides[i] for i in places],
        items=[judgement.items[i] for i in of_items],
        found=[judgement.found[i] for i in of_items],
    )
