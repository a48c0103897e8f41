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
    shares: tuple[float, float] | None = None,
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

    Where pairs may have one side alone, a mean of chosen or rejected is over those that are there (0 without any)
    times its share of `shares`, see `objective.side_shares`; margins are the difference of both, and a single answer is
    right where its reward lies on its side of 0.
    """
    assert figures.entropy is not None
    assert figures.mean_logits is not None
    assert figures.is_top1 is not None
    tokens = torch.stack([figures.entropy, figures.mean_logits, figures.is_top1.to(figures.entropy.dtype)], dim=1)
    totals = sums(tokens, pairs.lengths.view(-1)).sum(dim=0)
    count = pairs.lengths.sum(dim=0)
    chosen, rejected = rewards
    logps = pairs.per_token if averages else (pairs.chosen, pairs.rejected)

    def mean(values: torch.Tensor, side: int) -> torch.Tensor:
        if shares is None:
            return values.mean()
        return values.sum() / (pairs.lengths[:, side] > 0).sum().clamp(min=1) * shares[side]

    if shares is not None:
        count = count.clamp(min=1)
    of_chosen, of_rejected = mean(chosen, 0), mean(rejected, 1)
    found = {
        "entropy": totals[:, 0].sum() / count.sum(),
        "logits/chosen": totals[0, 1] / count[0],
        "logits/rejected": totals[1, 1] / count[1],
        "mean_token_accuracy": totals[0, 2] / count[0],
        "rewards/chosen": of_chosen,
        "rewards/rejected": of_rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).mean(),
        "rewards/margins": (chosen - rejected).mean() if shares is None else of_chosen - of_rejected,
        "logps/chosen": mean(logps[0], 0),
        "logps/rejected": mean(logps[1], 1),
        **extra,
    }
    return dict(zip(found, torch.stack([value.to(chosen.dtype) for value in found.values()]).tolist(), strict=True))
