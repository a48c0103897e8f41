"""One micro-batch of a step: the loss of its pairs with a graph behind it, and their figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.collate import layout, pad
from dpo.losses.objective import Objective, sft_share

if TYPE_CHECKING:
    from trl.trainer.dpo_trainer import DPOTrainer

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
            _sft_share(part, step),
        )

    return compute


def plain_loss(trainer: DPOTrainer, pad_id: int, soft_labels: bool) -> PartLoss:
    """TRL's own forward on its padded batch, and its own `_compute_loss`, which keeps its state on `trainer`: one call
    at a time."""

    def compute(model: Any, part: Sequence[TokenPair], step: Sequence[TokenPair], reference: Reference) -> Computed:
        batch: Any = pad(part, pad_id)
        chosen, rejected = zip(*(reference[pair.id] for pair in part), strict=True)
        batch["ref_chosen_logps"] = torch.tensor(chosen, dtype=torch.float32)
        batch["ref_rejected_logps"] = torch.tensor(rejected, dtype=torch.float32)
        batch = trainer._prepare_inputs(batch)
        mode = "train" if model.training else "eval"
        trainer._metrics[mode] = defaultdict(list)
        kept: list[torch.Tensor] = []

        def forward(**inputs: Any) -> Any:
            output = model(**inputs)
            kept.append(output.log_probs)
            return output

        weights, share = trainer.loss_weights, _sft_share(part, step)
        of_part = zip(trainer.loss_types, weights, strict=True)
        trainer.loss_weights = [weight * share if name == "sft" else weight for name, weight in of_part]
        try:
            loss = trainer._compute_loss(forward, batch, False)
        finally:
            trainer.loss_weights = weights
        if soft_labels:
            own = kept[0].sum(dim=1).view(2, -1)
            ratios = own - torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
            strengths = torch.tensor([pair.strength for pair in part], device=own.device)
            # What soft labels add to -log sigmoid(z), see `losses.pairwise.soft_sigmoid`.
            loss = loss + ((1 - strengths) * trainer.beta * (ratios[0] - ratios[1])).mean()
        figures = {name: float(values[-1]) for name, values in trainer._metrics[mode].items()}
        figures.pop("num_tokens", None)
        return loss, figures

    return compute


def _sft_share(part: Sequence[TokenPair], step: Sequence[TokenPair]) -> float:
    return sft_share([len(pair.chosen_ids) for pair in part], [len(pair.chosen_ids) for pair in step])


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
