"""The further figures of a judge (`judges.interface.Figure`) on one side or two, with intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dpo.evaluation.judges.ask import SAME
from dpo.evaluation.judges.interface import Figure, Item, Judge, PairItem, PairJudge, Verdict
from dpo.evaluation.sides import BASELINE, POLICY
from dpo.statistics.intervals import (
    FEW,
    Estimate,
    Floats,
    bootstrap_ratio,
    bootstrap_ratio_difference,
    few_shares,
    unseen,
    wilson,
)
from dpo.statistics.paired import paired_shares

Row = dict[str, Any]
Items = Sequence[Item | PairItem]


def _agreement(judged: Any) -> tuple[float, float]:
    asked = [v for _, v in judged if v.provenance != SAME]
    return float(sum(v.details["forward"] == v.details["backward"] for v in asked)), float(len(asked))


def _first_shown(judged: Any) -> tuple[float, float]:
    # `backward` is told from the first answer's side, which was shown second there.
    asked = [v for _, v in judged if v.provenance != SAME]
    return sum((v.details["forward"] + 1 - v.details["backward"]) / 2 for v in asked), float(len(asked))


POSITION = (
    Figure("consistent", "pairs judged alike in both orders", True, _agreement),
    Figure("first_shown", "preference for the answer shown first (50%: none)", True, _first_shown),
)


def figures_of(judge: Judge | PairJudge) -> tuple[Figure, ...]:
    """The judge's own figures; of judges that see both orders also how much the order matters."""
    return (*judge.figures, *POSITION) if isinstance(judge, PairJudge) and judge.both_orders else judge.figures


def one_side(judge: Judge | PairJudge, items: Items, verdicts: Sequence[Verdict], interval: Row) -> list[Row]:
    """Rows with key, label, share and `policy`, an Estimate; figures without a denominator are left out."""
    rows = []
    for figure in figures_of(judge):
        parts = _parts(figure, items, verdicts)
        if parts[:, 1].any():
            rows.append(_row(figure, {POLICY: _level(figure, parts, interval)}))
    return rows


def two_sides(judge: Judge, items: Items, verdicts: Sequence[Verdict], interval: Row) -> list[Row]:
    """As `one_side` for the policy's items (the first half) and the baseline's, with `baseline` and `difference`."""
    split = len(items) // 2
    rows = []
    for figure in figures_of(judge):
        mine = _parts(figure, items[:split], verdicts[:split])
        base = _parts(figure, items[split:], verdicts[split:])
        if mine[:, 1].any() and base[:, 1].any():
            estimates = {
                POLICY: _level(figure, mine, interval),
                BASELINE: _level(figure, base, interval),
                "difference": _difference(figure, mine, base, interval),
            }
            rows.append(_row(figure, estimates))
    return rows


def _is_trials(figure: Figure, parts: Floats) -> bool:
    """Whether each group is one trial that succeeds or not."""
    return figure.share and bool((parts[:, 1] == 1).all() and np.isin(parts[:, 0], (0, 1)).all())


def _level(figure: Figure, parts: Floats, interval: Row) -> Estimate:
    asked = parts[parts[:, 1] != 0]
    if _is_trials(figure, asked):
        return wilson(int(asked[:, 0].sum()), len(asked), interval["confidence"])
    if figure.share and len(asked) < FEW:
        return few_shares(asked, interval["confidence"])
    found = bootstrap_ratio(parts, **interval)
    return unseen(found, interval["confidence"], (0.0, 1.0)) if figure.share else found


def _difference(figure: Figure, mine: Floats, base: Floats, interval: Row) -> Estimate:
    asked = (mine[:, 1] != 0) & (base[:, 1] != 0)
    same = bool((asked == ((mine[:, 1] != 0) | (base[:, 1] != 0))).all())
    if same and _is_trials(figure, mine[asked]) and _is_trials(figure, base[asked]):
        return paired_shares(mine[asked, 0], base[asked, 0], interval["confidence"])
    found = bootstrap_ratio_difference(mine, base, **interval)
    return unseen(found, interval["confidence"], (-1.0, 1.0)) if figure.share else found


def _row(figure: Figure, estimates: Row) -> Row:
    return {"key": figure.key, "label": figure.label, "share": figure.share} | {
        side: asdict(estimate) for side, estimate in estimates.items()
    }


def _parts(figure: Figure, items: Items, verdicts: Sequence[Verdict]) -> Floats:
    """(groups, 2), groups in order of first appearance."""
    groups: dict[object, list[tuple[Any, Verdict]]] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        judged = groups.setdefault(item.prompt if item.group is None else item.group, [])
        if verdict.score is not None or verdict.details:
            judged.append((item, verdict))
    return np.array([figure.parts(judged) if judged else (0.0, 0.0) for judged in groups.values()], dtype=np.float64)
