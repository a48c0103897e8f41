"""The plain engine: TRL's own forward and loss, the truth the packed one is held to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.collate import pad
from dpo.engine.micro_batch import Computed, PartLoss, Reference, Whole, share_of_step

if TYPE_CHECKING:
    from trl.trainer.dpo_trainer import DPOTrainer

    from dpo.data.pair import TokenPair


def plain_loss(trainer: DPOTrainer, pad_id: int, soft_labels: bool) -> PartLoss:
    """TRL's own forward on its padded batch, and its own `_compute_loss`, which keeps its state on `trainer`: one call
    at a time."""

    def compute(model: Any, part: Sequence[TokenPair], whole: Whole, reference: Reference) -> Computed:
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

        weights, share = trainer.loss_weights, share_of_step(part, whole.pairs)
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
