"""Paired comparisons of settings that were tried with several seeds on the same items. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpo.evaluation.statistics import Estimate

Floats = NDArray[np.float64]
# 97.5% points of Student's t for 1 to 30 degrees of freedom; beyond, the normal one is within 2%.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def seeds_and_items(
    values: Floats, groups: Sequence[Hashable], resamples: int, confidence: float, seed: int
) -> Estimate:
    """Mean of `values` with a percentile bootstrap that draws seeds and prompts anew, each independently (Owen 2007,
    "The pigeonhole bootstrap", section 3). With one seed it is the bootstrap over prompts.

    Args:
        values: (seeds, items).
        groups: the prompt of each item; the items of a prompt are drawn together.
    """
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    of = np.array([index[group] for group in groups])
    sums = np.stack([np.bincount(of, row, len(index)) for row in values])
    counts = np.bincount(of, minlength=len(index)).astype(np.float64)
    rng = np.random.default_rng(seed)
    prompts = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), resamples).astype(np.float64)
    seeds = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples).astype(np.float64)
    means = np.einsum("rs,sp,rp->r", seeds, sums, prompts, optimize=True) / (len(values) * (prompts @ counts))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(index))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its 95% t interval; needs two seeds or more."""
    mean, spread, n = float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
    half = (T_975[n - 2] if n - 2 < len(T_975) else 1.96) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)
