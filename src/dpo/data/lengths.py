"""How long prompts and answers are, and whether the better answer is simply the longer one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo.statistics.intervals import wilson

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def quantiles(prompts: np.ndarray, counted: np.ndarray) -> dict[str, dict[str, int]]:
    """Quantiles in tokens of `prompts` (pairs) and of the tokens of both answers that count (pairs, 2), by part."""
    lengths = {"prompt": prompts, "chosen": counted[:, 0], "rejected": counted[:, 1]}
    return {
        part: {f"{q:g}": int(value) for q, value in zip(QUANTILES, np.quantile(found, QUANTILES), strict=True)}
        for part, every in lengths.items()
        # Single answers lack a side.
        if len(found := every[every > 0])
    }


def longest(lengths: np.ndarray) -> int:
    """Tokens of the longest sequence, a prompt with one of its answers."""
    return int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max()) if len(lengths) else 0


def length_bias(counted: np.ndarray) -> dict[str, Any] | None:
    """Mean of chosen minus rejected tokens and the share of pairs whose chosen is longer, with 95% intervals.

    `counted` (pairs, 2) are tokens of chosen and rejected, without those that a tool wrote.

    The mean's interval is normal (mean +- 1.96 s / sqrt(n)), the share's is Wilson's (1927), ties counting half.
    None below two pairs.
    """
    counted = counted[(counted != 0).all(axis=1)]
    count = len(counted)
    if count < 2:
        return None
    difference = counted[:, 0].astype(np.float64) - counted[:, 1]
    mean, half = float(difference.mean()), 1.96 * float(difference.std(ddof=1)) / math.sqrt(count)
    longer = wilson(float(((difference > 0) + 0.5 * (difference == 0)).sum()), count)
    return {
        "mean_tokens": mean,
        "mean_low": mean - half,
        "mean_high": mean + half,
        "chosen_longer": longer.value,
        "chosen_longer_low": longer.low,
        "chosen_longer_high": longer.high,
        "pairs": count,
    }
