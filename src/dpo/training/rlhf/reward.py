"""The reward model's loss: Bradley-Terry on the rewards of both answers of a pair (arXiv:2203.02155, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.micro_batch import Computed, PartLoss, Reference, Whole
from dpo.engine.rewards import packed_rewards, padded_rewards
from dpo.losses.pairwise import sigmoid

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair


def reward_loss(engine: str) -> PartLoss:
    """-log sigmoid(r(chosen) - r(rejected)), mean over pairs; metrics as TRL's RewardTrainer has them, `rewards/*`."""
    forward = packed_rewards if engine == "packed" else padded_rewards

    def compute(model: Any, part: Sequence[TokenPair], whole: Whole, reference: Reference) -> Computed:
        rewards = forward(model, part)
        chosen, rejected = rewards.unbind(dim=1)
        loss = sigmoid(chosen - rejected, 1.0).mean()
        with torch.no_grad():
            figures = {
                "rewards/chosen": chosen.mean(),
                "rewards/rejected": rejected.mean(),
                "rewards/margins": (chosen - rejected).mean(),
                "rewards/accuracies": ((chosen > rejected) + 0.5 * (chosen == rejected)).mean(),
            }
            values = torch.stack(list(figures.values())).tolist()
        return loss, dict(zip(figures, values, strict=True))

    return compute
