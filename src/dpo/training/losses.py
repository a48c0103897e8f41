"""What our splitting of a step and our soft labels add to TRL's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpo.config.losses import SORTED

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair


def is_coupled(losses: Sequence[str]) -> bool:
    """Whether a loss of the list sorts its batch, so that a step has to stay in one part."""
    return bool(SORTED & set(losses))


def part_weights(
    losses: Sequence[str], weights: Sequence[float], part: Sequence[TokenPair], step: Sequence[TokenPair]
) -> list[float]:
    """Weights of the losses on one part of a step, such that the parts' losses, each times its share of the pairs,
    add up to the loss of the whole step.

    Losses that are means over pairs keep theirs. `sft` is a mean over all chosen tokens of a batch: its part counts
    by its share of those tokens instead.
    """
    pairs_share = len(part) / len(step)
    tokens_share = sum(len(pair.chosen_ids) for pair in part) / sum(len(pair.chosen_ids) for pair in step)
    return [
        weight * tokens_share / pairs_share if loss == "sft" else weight
        for loss, weight in zip(losses, weights, strict=True)
    ]


def soft_label_term(
    log_probs: torch.Tensor, reference: torch.Tensor, strengths: torch.Tensor, beta: float
) -> torch.Tensor:
    """What soft labels add to the DPO loss of hard ones: mean of (1 - w) z.

    With z = beta (chosen - rejected log-ratio), -(w log sigma(z) + (1 - w) log sigma(-z)) = -log sigma(z) + (1 - w) z
    (conservative DPO, https://ericmitchell.ai/cdpo.pdf, equation 3, with a w for each pair).

    Args:
        log_probs: [2B, L - 1] of the policy per token, chosen rows first, 0 outside completions.
        reference: [2, B] summed log-probs of the reference, chosen and rejected.
        strengths: [B] w, the probability that chosen is better.
    """
    chosen, rejected = log_probs.sum(dim=1).view(2, -1) - reference
    return ((1 - strengths) * beta * (chosen - rejected)).mean()


class Watched:
    """A model that keeps the per-token log-probs of its last call, for a loss beside the one that called it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.log_probs: torch.Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output."""
        output = self.model(*args, **kwargs)
        self.log_probs = output.log_probs
        return output
