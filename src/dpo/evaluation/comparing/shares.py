"""What a method costs at the quality of another: as a share, with an interval.

Costs are those of whole runs, but two runs are seldom equally good. The cost of reaching a quality q is read off a
method's own runs: along straight lines from the baseline (no cost) through its points in the order of their cost, each
leaving out points that are dearer and no better. Both methods are read at the lower of their best qualities, so neither
is extrapolated. The interval is a bootstrap over prompts, which are drawn alike for every run; costs themselves have no
spread but that of seeds, which are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo.evaluation.comparing.methods import KINDS, RLHF, Point, points
from dpo.statistics.intervals import bootstrap_mean, draws
from dpo.statistics.length_control import length_controlled_win_rate

if TYPE_CHECKING:
    from dpo.evaluation.comparing.comparison import Entry

Row = dict[str, Any]
Curve = Sequence[tuple[float, float]]
"""(cost, quality) of a method's runs."""
ENOUGH = 100_000
"""More prompts than this are no advice."""


def shares(entries: Sequence[Entry], judge: str, resamples: int, confidence: float, seed: int) -> Row | None:
    """Every other method against RLHF, where both are among the runs; None where they are not.

    Returns:
        `methods`: a row a point, with its quality, KL, words and costs; `against`: a row a method.
    """
    found = points(entries, judge)
    if len({point.method for point in found}) < 2 or RLHF not in {point.method for point in found}:
        return None
    baseline = np.array([sample["baseline"]["verdicts"][judge].get("outcome") for sample in entries[0].samples], float)
    decided = ~np.isnan(baseline)
    for point in found:
        decided &= ~np.isnan(point.outcomes)
    if not decided.any():
        return None
    asked = [sample["prompt"] for sample, known in zip(entries[0].samples, decided, strict=True) if known]
    interval: Row = {"resamples": resamples, "confidence": confidence, "seed": seed}
    weights = _weights(asked, resamples, seed)
    base = weights @ baseline[decided] / weights.sum(axis=1)
    quality = [weights @ point.outcomes[decided] / weights.sum(axis=1) for point in found]
    rows: list[Row] = [
        {
            "method": point.method,
            "how": point.how,
            "runs": list(point.labels),
            "quality": asdict(bootstrap_mean(point.outcomes[decided], asked, **interval)),
            "kl": point.kl,
            "words": float(point.words.mean()),
            "cost": point.own,
            "with_parents": point.whole,
            "built_on": list(point.parents),
        }
        for point in found
    ]
    there = [i for i, point in enumerate(found) if point.method == RLHF]
    against = []
    for method in dict.fromkeys(point.method for point in found if point.method != RLHF):
        own = [i for i, point in enumerate(found) if point.method == method]
        best, other = (max(group, key=lambda i: quality[i][0]) for group in (own, there))
        gap = found[best].outcomes[decided] - found[other].outcomes[decided]
        difference = bootstrap_mean(gap, asked, **interval)
        half = (difference.high - difference.low) / 2
        more = math.ceil(difference.n * (half / max(abs(difference.value), 1e-9)) ** 2)
        words = found[best].words[decided] - found[other].words[decided]
        against.append(
            {
                "method": method,
                "how": found[best].how,
                "rlhf": found[other].how,
                "difference": asdict(difference),
                "told_apart": difference.excludes_zero,
                "prompts_to_tell": more if not difference.excludes_zero and more <= ENOUGH else None,
                "equal_length": asdict(length_controlled_win_rate((gap + 1) / 2, words, asked, **interval)),
                "at_quality": float(min(max(quality[i][0] for i in group) for group in (own, there))),
                "shares": _shares(found, quality, base, own, there, confidence),
                "runs": [len(own), len(there)],
            }
        )
    return {"judge": judge, "methods": rows, "against": against}


def _weights(asked: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """(1 + resamples, rows): every row once, then how often each row's prompt was drawn."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(asked))}
    of = np.array([index[prompt] for prompt in asked])
    drawn = np.concatenate(list(draws(len(index), resamples, seed)))
    return np.concatenate([np.ones((1, len(asked))), drawn[:, of]])


def _shares(
    found: Sequence[Point], quality: Sequence[np.ndarray], base: np.ndarray, own: list[int], there: list[int],
    confidence: float,
) -> Row:  # fmt: skip
    """By kind of cost: with what the runs were built on, and with that taken as given."""
    rows: Row = {}
    for kind in KINDS:
        for name, of in (("with_parents", lambda i: found[i].whole), ("given", lambda i: found[i].own)):
            if any(not of(i)[kind] for i in (*own, *there)):
                continue
            if kind == "peak_memory_mb":
                # Memory is needed at once, whatever the quality.
                least = [min(of(i)[kind] for i in group) for group in (own, there)]
                rows.setdefault(kind, {})[name] = {"value": least[0] / least[1], "low": None, "high": None}
                continue
            costs = [[(of(i)[kind], quality[i]) for i in group] for group in (own, there)]
            ratios = np.array([_ratio(*_at(costs, draw), base[draw]) for draw in range(len(base))])
            drawn = ratios[1:][np.isfinite(ratios[1:])]
            if not math.isfinite(ratios[0]) or not len(drawn):
                continue
            low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
            estimate = {"value": float(ratios[0]), "low": float(low), "high": float(high)}
            rows.setdefault(kind, {})[name] = estimate
    return rows


def _at(costs: list[list[tuple[float, np.ndarray]]], draw: int) -> tuple[Curve, Curve]:
    """Both methods' points in one draw of the prompts."""
    own, other = ([(cost, float(quality[draw])) for cost, quality in points] for points in costs)
    return own, other


def _ratio(own: Curve, other: Curve, base: float) -> float:
    """Cost of `own` over that of `other`, (cost, quality) points, at the lower of their best qualities."""
    reached = min(max(quality for _, quality in own), max(quality for _, quality in other))
    if reached <= base:
        return math.nan
    return cost_at(own, reached, base) / cost_at(other, reached, base)


def cost_at(points: Curve, quality: float, base: float) -> float:
    """The cost at which straight lines from (0, `base`) through (cost, quality) `points` reach `quality`; NaN where
    none does."""
    cost, best = 0.0, base
    for more, better in sorted(points):
        if better <= best:
            continue
        if better >= quality:
            return cost + (more - cost) * (quality - best) / (better - best)
        cost, best = more, better
    return math.nan
