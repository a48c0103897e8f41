"""The win rate between answers of equal length. Pure numpy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from dpo.statistics.intervals import Estimate, Floats, bootstrap_share, draws


def length_controlled_win_rate(
    outcome: Sequence[float] | Floats,
    length_difference: Sequence[float] | Floats,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """What the win rate would be between answers of equal length (arXiv:2404.04475, equation 2, no prompt term).

    Logistic regression of the outcome on tanh(length difference / its standard deviation); the estimate is the
    regression's value at difference 0. A weak ridge (1 on the slope, 0.01 on the intercept) keeps it finite when one
    side always wins.

    Args:
        outcome: 1 win, 0.5 tie, 0 loss of the first side, one a row.
        length_difference: length of the first side's answer minus the second's, in any one unit.
    """
    target = np.asarray(outcome, dtype=np.float64)
    gap = np.asarray(length_difference, dtype=np.float64)
    if not len(target):
        raise ValueError("no outcomes")
    spread = float(gap.std())
    x = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    names = list(range(len(target))) if groups is None else list(groups)
    index = {group: i for i, group in enumerate(dict.fromkeys(names))}
    of = np.array([index[name] for name in names])
    value = float(_intercept_rate(x, target, np.ones((1, len(target))))[0])
    rates = np.concatenate([_intercept_rate(x, target, w[:, of]) for w in draws(len(index), resamples, seed)])
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    if (target == target[0]).all():
        # Nothing to regress: as sure as the share itself.
        alike = bootstrap_share(target, names, resamples, confidence, seed)
        low, high = min(value, alike.low), max(value, alike.high)
    return Estimate(value, float(low), float(high), len(index))


def _intercept_rate(x: Floats, target: Floats, weights: Floats) -> Floats:
    """(resamples,) sigmoid of the intercept, one weighted logistic regression a row of `weights`, by Newton steps."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * x, -30, 30)))
        residual, curvature = weights * (target - p), weights * p * (1 - p)
        gradient_a, gradient_b = residual.sum(1) - 0.01 * a, residual @ x - b
        aa, ab, bb = curvature.sum(1) + 0.01, curvature @ x, curvature @ (x * x) + 1
        determinant = aa * bb - ab * ab
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        # A full Newton step can overshoot where all outcomes agree.
        a, b = a + np.clip(step_a, -4, 4), b + np.clip(step_b, -4, 4)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-8:
            break
    return 1 / (1 + np.exp(-np.clip(a, -30, 30)))
