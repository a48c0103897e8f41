"""The losses, each [B] tensors -> [B], a value per pair.

Args of all:
    margin: [B] score of chosen minus score of rejected; a score is the log-ratio (or another divergence's, see
        `divergences`), nats.
    margin_per_token: [B] the same with each score divided by the tokens of its completion.
    chosen, rejected: [B] log-ratios.
    beta: strength of the tether to the reference.
    flipped: probability that a label is wrong (`label_smoothing`).
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

# Functions of the margin.


def sigmoid(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO (arXiv:2305.18290, equation 7): -log sigma(beta margin)."""
    return -logsigmoid(beta * margin)


def soft_sigmoid(margin: torch.Tensor, beta: float, strengths: torch.Tensor) -> torch.Tensor:
    """DPO on soft labels (conservative DPO, https://ericmitchell.ai/cdpo.pdf, equation 3, a label for each pair).

    -(w log sigma(z) + (1 - w) log sigma(-z)) = -log sigma(z) + (1 - w) z with z = beta margin.

    Args:
        strengths: [B] w, the probability that chosen is better.
    """
    return sigmoid(margin, beta) + (1 - strengths) * beta * margin


def sigmoid_norm(margin_per_token: torch.Tensor, beta: float) -> torch.Tensor:
    """Length-normalized DPO (Tulu 3, arXiv:2411.15124, section 5.1)."""
    return sigmoid(margin_per_token, beta)


def hinge(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """SLiC on log-ratios (arXiv:2305.10425; RSO, arXiv:2309.06657): max(0, 1 - beta margin)."""
    return torch.relu(1 - beta * margin)


def ipo(margin_per_token: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (arXiv:2310.12036, equation 17, per token as its authors compute it): (margin - 1 / (2 beta))^2."""
    return (margin_per_token - 1 / (2 * beta)) ** 2


def exo_pair(margin: torch.Tensor, beta: float, flipped: float) -> torch.Tensor:
    """EXO-pref (arXiv:2402.00856, equation 16, K = 2): KL from the policy's preference to (1 - flipped, flipped)."""
    z = beta * margin
    wins = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-flipped))
    return wins + torch.sigmoid(-z) * (logsigmoid(-z) - math.log(flipped))


def robust(margin: torch.Tensor, beta: float, flipped: float) -> torch.Tensor:
    """Robust DPO (arXiv:2403.00409): unbiased when labels are flipped at that rate, below 1/2."""
    z = beta * margin
    return (flipped * logsigmoid(-z) - (1 - flipped) * logsigmoid(z)) / (1 - 2 * flipped)


def discopop(margin: torch.Tensor, beta: float, tau: float) -> torch.Tensor:
    """DiscoPOP, log-ratio modulated (arXiv:2406.08414, equation 5): logistic and exponential, blended by sigma(z/tau).

    Args:
        tau: temperature of the blend.
    """
    z = beta * margin
    blend = torch.sigmoid(z / tau)
    return -logsigmoid(z) * (1 - blend) + torch.exp(-z) * blend


# Functions of both log-ratios, not only of their difference.


def nca_pair(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """NCA for pairs (arXiv:2402.05369)."""
    good, bad = beta * chosen, beta * rejected
    return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)


def bco_pair(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """BCO (arXiv:2404.04656) without the running mean of rewards, as TRL's DPOTrainer has it."""
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """SPPO (arXiv:2405.00675, equation 4.7) with the winner's probability taken as 1."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """APO-zero (arXiv:2408.06266, equation 7): chosen up, rejected down."""
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """APO-down (arXiv:2408.06266, equation 8): both down, rejected more."""
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


# Functions of a whole batch: the values of one pair depend on the others.


def aot(policy_margin: torch.Tensor, reference_margin: torch.Tensor, beta: float, flipped: float) -> torch.Tensor:
    """AOT, paired (arXiv:2406.05882): the policy's sorted margins should dominate the reference's.

    Args:
        policy_margin, reference_margin: [B] log-prob of chosen minus that of rejected.
    """
    return _smoothed(policy_margin.sort().values - reference_margin.sort().values, beta, flipped)


def aot_unpaired(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, flipped: float) -> torch.Tensor:
    """AOT, unpaired (arXiv:2406.05882): chosen's sorted log-ratios should dominate rejected's."""
    return _smoothed(chosen.sort().values - rejected.sort().values, beta, flipped)


def _smoothed(margin: torch.Tensor, beta: float, flipped: float) -> torch.Tensor:
    return -logsigmoid(beta * margin) * (1 - flipped) - logsigmoid(-beta * margin) * flipped


def sft(log_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of all chosen tokens of the batch, the same for each pair; no reference in it.

    Args:
        log_probs: [B] summed log-probs of the chosen completions under the policy.
        lengths: [B] their tokens.
    """
    return (-log_probs.sum() / lengths.sum()).expand(log_probs.shape[0])
