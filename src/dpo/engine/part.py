"""One micro-batch of a step: the loss of its pairs with a graph behind it, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.collate import layout
from dpo.losses.objective import Objective, sft_share

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair

Reference = Mapping[str, tuple[float, float]]
"""Pair id -> summed (chosen, rejected) log-probs of the reference."""
Computed = tuple[torch.Tensor, dict[str, float]]
"""(mean loss with its graph, TRL's metrics)."""
PartLoss = Callable[[Any, Sequence["TokenPair"], Sequence["TokenPair"], Reference], Computed]
"""(model, part, the step it is a part of, reference) -> what was computed."""


@dataclass(frozen=True)
class Part:
    """One micro-batch of a step, computed."""

    loss: torch.Tensor
    """Mean over its pairs, with its graph."""
    figures: dict[str, float]
    """TRL's metrics and the loss."""
    counted: int
    """Pairs it counts for in the means of a step."""


def packed_loss(objective: Objective) -> PartLoss:
    """The packed forward, and `objective` on its [N] figures of completion tokens, for any number of threads."""

    def compute(model: Any, part: Sequence[TokenPair], step: Sequence[TokenPair], reference: Reference) -> Computed:
        packed = layout(part).to(_device(model))
        figures = model(input_ids=packed.token_ids, packed=packed, figures=objective.needs)
        known = [[*reference[pair.id], pair.strength] for pair in part]
        given = torch.tensor(known, dtype=torch.float32, device=packed.token_ids.device)
        return objective(
            figures,
            [(chosen, rejected) for _, chosen, rejected in packed.lengths],
            given[:, :2],
            given[:, 2] if objective.soft_labels else None,
            share_of_step(part, step),
        )

    return compute


def share_of_step(part: Sequence[TokenPair], step: Sequence[TokenPair]) -> float:
    """What the sft loss of `part` counts for in that of `step`, see `losses.objective.sft_share`."""
    return sft_share([len(pair.chosen_ids) for pair in part], [len(pair.chosen_ids) for pair in step])


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
