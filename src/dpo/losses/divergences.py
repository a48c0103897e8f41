"""Rewards of f-divergences: what takes the log-ratio's place when another divergence holds policy to reference.

f-DPO (arXiv:2309.16240, table 1): the reward is beta f'(t) up to a constant, t = pi / pi_ref; with the reverse KL that
is beta log t. The constant cancels only in the difference of two rewards.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

LARGEST_EXPONENT = {torch.float16: 11.0}
"""exp of more than this cannot be held; 80 for other dtypes."""


def reverse_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """log t."""
    return log_ratio


def forward_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """f'(t) = 1 - 1/t."""
    return 1 - torch.exp(-log_ratio)


def js_divergence(log_ratio: torch.Tensor) -> torch.Tensor:
    """f'(t) = log(2t / (t + 1))."""
    return math.log(2) + logsigmoid(log_ratio)


def alpha_divergence(log_ratio: torch.Tensor, alpha: float) -> torch.Tensor:
    """f'(t) = (t^(alpha - 1) - 1) / (alpha - 1); log t at alpha = 1."""
    if abs(alpha - 1.0) < 1e-6:
        return log_ratio
    exponent = ((alpha - 1.0) * log_ratio).float().clamp(max=LARGEST_EXPONENT.get(log_ratio.dtype, 80.0))
    return (torch.exp(exponent) - 1.0).to(log_ratio.dtype) / (alpha - 1.0)


def score(log_ratio: torch.Tensor, divergence: str, alpha: float) -> torch.Tensor:
    """Any shape of log-ratios -> f'(t) of the divergence of that name."""
    if divergence == "alpha_divergence":
        return alpha_divergence(log_ratio, alpha)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js_divergence": js_divergence}[divergence](log_ratio)
