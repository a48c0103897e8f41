"""REINFORCE with a leave-one-out baseline (RLOO, Ahmadian et al. 2024, arXiv:2402.14740, equation 9)."""

from __future__ import annotations

import torch


def leave_one_out(returns: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
    """[G, k] returns of k samples of each prompt, less the mean of the prompt's other samples.

    Args:
        there: [G, k] bool, which samples there are, at least two a prompt; None: all. Others get 0.
    """
    mask = torch.ones_like(returns) if there is None else there.to(returns.dtype)
    kept = returns * mask
    others = (kept.sum(dim=1, keepdim=True) - kept) / (mask.sum(dim=1, keepdim=True) - 1)
    return (returns - others) * mask


def surrogate(log_probs: torch.Tensor, advantages: torch.Tensor, samples: int) -> torch.Tensor:
    """[] whose gradient is that of -E[advantage log pi(y|x)], a mean over `samples` answers.

    At the policy that drew them it has the gradient of the clipped ratio that TRL's RLOOTrainer minimizes.

    Args:
        log_probs: summed over each answer's tokens, with their graph; advantages: of the same shape, without one.
    """
    return -(advantages.detach() * log_probs).sum() / samples
