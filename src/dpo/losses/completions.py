"""From figures of completion tokens to figures of completions.

N tokens lie completion after completion: chosen of pair 0, rejected of pair 0, chosen of pair 1, ... The lengths [2B]
of the completions are in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sums(values: torch.Tensor, lengths: torch.Tensor, sides: int = 2) -> torch.Tensor:
    """[N, ...] of tokens -> [B, 2, ...] sums over (chosen, rejected) of each pair.

    Token after token, so that equal tokens have equal sums wherever they lie; without atomic additions, so that a GPU
    gives the same bits again. 16-bit values are added in fp32, and stay so.

    Args:
        lengths: [2B] int64 tokens of each completion.
        sides: 1 for sequences that are not of pairs: [B] lengths, [B, 1, ...] sums.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    total = torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
    return total.view(-1, sides, *values.shape[1:])


def length_weights(lengths: Sequence[tuple[int, int]], alpha: float, like: torch.Tensor) -> torch.Tensor:
    """[N] weights of tokens: 1 within the shorter completion of a pair, `alpha` beyond.

    LD-DPO (arXiv:2409.06411): the excess of the longer answer counts less, or with 0 not at all.

    Args:
        lengths: (chosen, rejected) tokens of each pair.
        like: has the dtype and device of the weights.
    """
    weights: list[float] = []
    for pair in lengths:
        shared = min(pair)
        for length in pair:
            weights += [1.0] * shared + [alpha] * (length - shared)
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def likelihood_weights(log_probs: torch.Tensor, log_sum_sq_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B] weight of each pair: how likely the policy is to write both completions; no gradient.

    WPO (arXiv:2406.11827, equation 2, aligned by the sum of squared probabilities): exp of the mean over tokens of
    log p(token) - log sum_v p(v)^2, for chosen times for rejected.

    Args:
        log_probs, log_sum_sq_probs: [N] of the policy's tokens.
        lengths: [2B] tokens of each completion.
    """
    aligned = sums((log_probs - log_sum_sq_probs).detach(), lengths)
    return torch.exp(aligned / lengths.view(-1, 2)).prod(dim=1)
