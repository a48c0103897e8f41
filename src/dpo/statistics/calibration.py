"""Whether a preference model is as often right as it says it is. Pure numpy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dpo.statistics.intervals import Estimate, Floats, clusters, estimate


@dataclass(frozen=True)
class Calibration:
    """Whether stated confidence matches how often it is right; see `calibration`."""

    error: Estimate
    bins: list[dict[str, float]]


def calibration(
    probability: Sequence[float] | Floats,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    bins: int = 5,
) -> Calibration:
    """Expected calibration error of a preference model (Naeini et al. 2015), equally filled bins.

    The interval is a percentile bootstrap over `groups`, the rows' bins held fixed. The error is a sum of absolute
    values, so few rows make it too high, never too low.

    Args:
        probability: p(chosen better), sigmoid(beta x margin) for DPO. The label is always "chosen", so confidence is
            max(p, 1 - p) and a row is right when p > 0.5 (p = 0.5 is half right).
        groups: the prompt of each row; None means that every row is a prompt of its own.
    """
    p = np.asarray(probability, dtype=np.float64)
    sure = np.maximum(p, 1 - p)
    right = np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))
    parts = [part for part in np.array_split(np.argsort(sure, kind="stable"), bins) if len(part)]
    rows = [{"confidence": float(sure[i].mean()), "accuracy": float(right[i].mean()), "n": len(i)} for i in parts]
    excess = np.zeros((len(parts), len(p)))  # a row a bin: by how much each of its pairs was surer than right
    for i, part in enumerate(parts):
        excess[i, part] = sure[part] - right[part]
    sums = [clusters(row, groups)[0] for row in excess]
    table = np.stack([*sums, clusters(p, groups)[1]], axis=1)

    def error_of(weights: Floats) -> Floats:
        drawn = np.abs(weights @ table)
        return drawn[:, :-1].sum(1) / drawn[:, -1]

    error = estimate(table, error_of, resamples, confidence, seed)
    return Calibration(error, rows)
