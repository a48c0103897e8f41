"""Losses without a reference, each [B] tensors -> [B], a value per pair; and KTO's, a value per example.

Args of all:
    chosen, rejected: [B] log-probs under the policy, summed or, where a loss says so, averaged over tokens, nats.
    beta: slope of the preference term.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid


def simpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma_ratio: float) -> torch.Tensor:
    """SimPO (arXiv:2405.14734, equation 6) on log-probs per token: -log sigma(beta (chosen - rejected) - gamma).

    Args:
        gamma_ratio: the margin asked for, gamma, over beta.
    """
    return -logsigmoid(beta * (chosen - rejected - gamma_ratio))


def cpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """CPO's preference term (arXiv:2401.08417, equation 3) on summed log-probs; the likelihood of chosen is added."""
    return -logsigmoid(beta * (chosen - rejected))


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """[B] log of (odds of chosen / odds of rejected), odds p / (1 - p), on log-probs per token
    (ORPO, arXiv:2403.07691, equations 4 and 7)."""
    return (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))


def orpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """ORPO's odds-ratio term (arXiv:2403.07691, equation 7), weighted by beta (the paper's lambda); the likelihood of
    prompt and chosen is added (equation 6)."""
    return -beta * logsigmoid(log_odds_ratio(chosen, rejected))


def kto(log_ratio: torch.Tensor, desirable: bool, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """KTO's value of examples (arXiv:2402.01306, equation 8), before its weight.

    Args:
        log_ratio: [B] of each completion.
        desirable: whether they are wanted.
        kl: [] the divergence they are measured from, at least 0 and without a gradient.
    """
    distance = log_ratio - kl
    return 1 - torch.sigmoid(beta * (distance if desirable else -distance))


def _log_complement(log_prob: torch.Tensor) -> torch.Tensor:
    """log(1 - p) without cancellation, by the branch at p = 1/2."""
    small = log_prob < -math.log(2)
    return torch.where(small, torch.log1p(-torch.exp(log_prob)), torch.log(-torch.expm1(log_prob)))
