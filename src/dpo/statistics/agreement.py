"""How far raters agree beyond chance, with bootstrap intervals over what was rated. Pure numpy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dpo.statistics.intervals import Estimate, Floats, clusters, draws

Level = Literal["nominal", "interval"]


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Cohen's kappa of two raters who each named a category for every item (Cohen 1960, equation 1).

    None where chance alone would agree always (both raters name one and the same category).
    """
    names = list(dict.fromkeys([*first, *second]))
    a = np.array([[name == x for name in names] for x in first], dtype=np.float64)
    b = np.array([[name == x for name in names] for x in second], dtype=np.float64)
    same = (a * b).sum(1)
    # Per group, so that a resample is a product: agreements, both raters' margins and the number of items.
    parts = _grouped(np.column_stack([same, a, b, np.ones(len(a))]), groups)
    k = len(names)

    def kappa(sums: Floats) -> Floats:
        total = sums[:, -1]
        observed = sums[:, 0] / total
        chance = (sums[:, 1 : k + 1] * sums[:, k + 1 : 2 * k + 1]).sum(1) / total**2
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)
        return found

    return _estimate(parts, kappa, resamples, confidence, seed)


def krippendorff_alpha(
    ratings: Sequence[Mapping[str, Any]],
    level: Level,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Krippendorff's alpha of any number of raters, any of whom may have left out any unit (Krippendorff 2011).

    Args:
        ratings: for each unit, rater -> value; a unit with fewer than two ratings says nothing and is left out.
        level: nominal (equal or not) or interval (squared difference, values are numbers).

    Returns:
        alpha: 1 full agreement, 0 chance, below 0 systematic disagreement; None without two different values that
        could have disagreed. `n` counts groups (units where None) with at least two ratings.
    """
    kept = [i for i, unit in enumerate(ratings) if len(unit) >= 2]
    values = sorted({value for i in kept for value in ratings[i].values()}, key=lambda v: (str(type(v)), v))
    if not kept:
        return None
    counts = np.array([[list(ratings[i].values()).count(v) for v in values] for i in kept], dtype=np.float64)
    if level == "nominal":
        distance = 1 - np.eye(len(values))
    else:
        numbers = np.array(values, dtype=np.float64)
        distance = (numbers[:, None] - numbers[None, :]) ** 2
    raters = counts.sum(1)
    # Sum over ordered pairs within the unit, each divided by m - 1 (equal values are at distance 0).
    disagreement = np.einsum("uc,ck,uk->u", counts, distance, counts) / (raters - 1)
    chosen = None if groups is None else [groups[i] for i in kept]
    parts = _grouped(np.column_stack([disagreement, counts]), chosen)

    def alpha(sums: Floats) -> Floats:
        pooled = sums[:, 1:]
        total = pooled.sum(1)
        expected = np.einsum("rc,ck,rk->r", pooled, distance, pooled) / (total - 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.where(expected > 0, 1 - sums[:, 0] / expected, np.nan)
        return found

    return _estimate(parts, alpha, resamples, confidence, seed)


def _grouped(rows: Floats, groups: Sequence[Hashable] | None) -> Floats:
    """(groups, columns) sums of rows."""
    return np.column_stack([clusters(rows[:, j], groups)[0] for j in range(rows.shape[1])])


def _estimate(parts: Floats, statistic: Any, resamples: int, confidence: float, seed: int) -> Estimate | None:
    value = float(statistic(parts.sum(0, keepdims=True))[0])
    if np.isnan(value):
        return None
    drawn = np.concatenate([statistic(w @ parts) for w in draws(len(parts), resamples, seed)])
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)), len(parts))
