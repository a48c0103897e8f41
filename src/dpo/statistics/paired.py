"""Comparisons of what was tried on the same items, once or with several seeds. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from dpo.statistics.intervals import Estimate, Floats, unseen, wilson

# 97.5% points of Student's t for 1 to 30 degrees of freedom; beyond, the normal one is within 2%.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def seeds_and_items(
    values: Floats,
    groups: Sequence[Hashable],
    resamples: int,
    confidence: float,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of `values` with a percentile bootstrap that draws seeds and prompts anew, each independently (Owen 2007,
    "The pigeonhole bootstrap", section 3). With one seed it is the bootstrap over prompts.

    Args:
        values: (seeds, items).
        groups: the prompt of each item; the items of a prompt are drawn together.
        bounds: where values are shares or differences of such, what they lie within: where all agree, the interval
            allows for prompts that were not seen.
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
    found = Estimate(float(values.mean()), float(low), float(high), len(index))
    return found if bounds is None else unseen(found, confidence, bounds)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its 95% t interval; needs two seeds or more."""
    mean, spread, n = float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
    half = (T_975[n - 2] if n - 2 < len(T_975) else 1.96) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_shares(first: Sequence[float] | Floats, second: Sequence[float] | Floats, confidence: float) -> Estimate:
    """Difference of two shares of the same trials (0 or 1 each) with the interval of Newcombe 1998 ("Improved
    confidence intervals for the difference between binomial proportions based on paired data", method 10).

    It is made of Wilson's intervals, so it keeps its width where all trials agree and a bootstrap has none.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n = len(x)
    mine, base = wilson(int(x.sum()), n, confidence), wilson(int(y.sum()), n, confidence)
    both, neither = float((x * y).sum()), float(((1 - x) * (1 - y)).sum())
    excess = both * neither - float((x * (1 - y)).sum()) * float(((1 - x) * y).sum())
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    spread = math.sqrt(x.sum() * (n - x.sum()) * y.sum() * (n - y.sum()))
    phi = excess / spread if spread > 0 else 0.0

    def half(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    value = mine.value - base.value
    low = value - half(mine.value - mine.low, base.high - base.value)
    return Estimate(value, low, value + half(mine.high - mine.value, base.value - base.low), n)
