"""Every loss by name, and what it needs: a reference or none, whole steps, the likelihood of chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

from dpo.losses import beyond_dpo, pairwise

if TYPE_CHECKING:
    import torch

    from dpo.losses.objective import Compared, Objective


@dataclass(frozen=True)
class Loss:
    """One loss. Those of a weighted list (all that TRL's DPOTrainer has) need the same."""

    value: Callable[[Objective, Compared], torch.Tensor]
    """[B] value per pair."""
    whole_step: bool = False
    """It sorts its batch, so that a step has to stay in one part."""
    reference: bool = True
    """It compares the policy with a reference, which has to be computed."""
    averages: bool = False
    """It compares log-probs per token; without a reference these are what rewards are made of."""
    likelihood: Callable[[Objective], float] | None = None
    """The weight of the negative log-likelihood of chosen that is added, a mean over the tokens of a step."""
    of_prompts: bool = False
    """That likelihood is also of the prompts, but for their first tokens."""
    examples: bool = False
    """It takes each completion as an example of its own, measured from an estimate of the divergence over the step."""
    in_dpo_trainer: bool = True
    """TRL's DPOTrainer has it; others are of trainers of their own, and stand alone."""
    own_metrics: Callable[[Objective, Compared], dict[str, torch.Tensor]] = lambda o, p: {}
    """Metrics that only this loss has."""


def _orpo_metrics(objective: Objective, pairs: Compared) -> dict[str, torch.Tensor]:
    """Under TRL's names, which are the other way round than they read."""
    odds = beyond_dpo.log_odds_ratio(*pairs.per_token).detach()
    return {"log_odds_ratio": logsigmoid(odds).mean(), "log_odds_chosen": odds.mean()}


def _kto(objective: Objective, pairs: Compared) -> torch.Tensor:
    """[B] mean of the examples of each pair: two, or one where it has a single answer."""
    chosen = beyond_dpo.kto(pairs.chosen_ratio, True, pairs.kl, objective.beta)
    rejected = beyond_dpo.kto(pairs.rejected_ratio, False, pairs.kl, objective.beta)
    there = pairs.lengths > 0
    both = there[:, 0] * objective.desirable_weight * chosen + there[:, 1] * objective.undesirable_weight * rejected
    return both / there.sum(dim=1)


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(lambda o, p: pairwise.sigmoid(o.margin(p), o.beta)),
    "sigmoid_norm": Loss(lambda o, p: pairwise.sigmoid_norm(o.margin_per_token(p), o.beta)),
    "hinge": Loss(lambda o, p: pairwise.hinge(o.margin(p), o.beta)),
    "ipo": Loss(lambda o, p: pairwise.ipo(o.margin_per_token(p), o.beta)),
    "exo_pair": Loss(lambda o, p: pairwise.exo_pair(o.margin(p), o.beta, o.label_smoothing)),
    "robust": Loss(lambda o, p: pairwise.robust(o.margin(p), o.beta, o.label_smoothing)),
    "discopop": Loss(lambda o, p: pairwise.discopop(o.margin(p), o.beta, o.discopop_tau)),
    "nca_pair": Loss(lambda o, p: pairwise.nca_pair(p.chosen_ratio, p.rejected_ratio, o.beta)),
    "bco_pair": Loss(lambda o, p: pairwise.bco_pair(p.chosen_ratio, p.rejected_ratio, o.beta)),
    "sppo_hard": Loss(lambda o, p: pairwise.sppo_hard(p.chosen_ratio, p.rejected_ratio, o.beta)),
    "apo_zero": Loss(lambda o, p: pairwise.apo_zero(p.chosen_ratio, p.rejected_ratio, o.beta)),
    "apo_down": Loss(lambda o, p: pairwise.apo_down(p.chosen_ratio, p.rejected_ratio, o.beta)),
    "aot": Loss(
        lambda o, p: pairwise.aot(p.chosen - p.rejected, p.ref_chosen - p.ref_rejected, o.beta, o.label_smoothing),
        whole_step=True,
    ),
    "aot_unpaired": Loss(
        lambda o, p: pairwise.aot_unpaired(p.chosen_ratio, p.rejected_ratio, o.beta, o.label_smoothing), whole_step=True
    ),
    "sft": Loss(lambda o, p: pairwise.sft(p.chosen_likelihood, p.lengths[:, 0])),
    "simpo": Loss(
        lambda o, p: beyond_dpo.simpo(*p.per_token, o.beta, o.gamma_ratio),
        reference=False,
        averages=True,
        in_dpo_trainer=False,
    ),
    "cpo": Loss(
        lambda o, p: beyond_dpo.cpo(p.chosen, p.rejected, o.beta),
        reference=False,
        likelihood=lambda o: o.cpo_alpha,
        in_dpo_trainer=False,
    ),
    "orpo": Loss(
        lambda o, p: beyond_dpo.orpo(*p.per_token, o.beta),
        reference=False,
        averages=True,
        likelihood=lambda o: 1.0,
        of_prompts=True,
        in_dpo_trainer=False,
        own_metrics=_orpo_metrics,
    ),
    "kto": Loss(_kto, examples=True, in_dpo_trainer=False, own_metrics=lambda o, p: {"kl": p.kl}),
}
"""Its name, TRL's where TRL has it -> the loss."""
