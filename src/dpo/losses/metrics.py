"""The figures people compare, under the names that TRL's DPOTrainer logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dpo.losses.completions import sums

if TYPE_CHECKING:
    from dpo.losses.objective import Compared, TokenFigures


@torch.no_grad()
def metrics(
    figures: TokenFigures,
    pairs: Compared,
    rewards: tuple[torch.Tensor, torch.Tensor],
    extra: dict[str, torch.Tensor],
    averages: bool = False,
) -> dict[str, float]:
    """Of B pairs, in one transfer from the device:

    - entropy: nats a token, mean over all completion tokens;
    - logits/chosen, logits/rejected: mean over tokens and vocabulary;
    - mean_token_accuracy: share of chosen tokens that no other token beats;
    - rewards/chosen, rewards/rejected: mean of `rewards`, beta times the log-ratio, or without a reference times the
      log-prob; rewards/margins: of their difference;
    - rewards/accuracies: share of pairs whose chosen has the higher reward;
    - logps/chosen, logps/rejected: mean log-prob, nats, summed or, where the loss without a reference `averages`,
      averaged over tokens;
    - `extra`: [] figures of one loss.
    """
    assert figures.entropy is not None
    assert figures.mean_logits is not None
    assert figures.is_top1 is not None
    tokens = torch.stack([figures.entropy, figures.mean_logits, figures.is_top1.to(figures.entropy.dtype)], dim=1)
    totals = sums(tokens, pairs.lengths.view(-1)).sum(dim=0)
    count = pairs.lengths.sum(dim=0)
    chosen, rejected = rewards
    logps = pairs.per_token if averages else (pairs.chosen, pairs.rejected)
    found = {
        "entropy": totals[:, 0].sum() / count.sum(),
        "logits/chosen": totals[0, 1] / count[0],
        "logits/rejected": totals[1, 1] / count[1],
        "mean_token_accuracy": totals[0, 2] / count[0],
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "logps/chosen": logps[0].mean(),
        "logps/rejected": logps[1].mean(),
        **extra,
    }
    return dict(zip(found, torch.stack([value.to(chosen.dtype) for value in found.values()]).tolist(), strict=True))
