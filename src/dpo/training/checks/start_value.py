"""Before step 1 of a loss without a reference: its value is the one that the model's own logits give.

There are no log-ratios to be 0, so the value of the start is computed a second time by other means: one sequence at a
time through the model as it was loaded, adapters off, and the paper's formula in Python's numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch

from dpo.config.losses import Cpo, Dpo, Orpo, Reward, Simpo
from dpo.data.pair import TokenPair
from dpo.modeling.modes import scoring_mode
from dpo.training import trainer as trainers
from dpo.training.base import Base
from dpo.training.checks import guards
from dpo.training.checks.probe import token_log_probs
from dpo.training.job import Job

PAIRS = 8


def check_start_value(job: Job, trainer: trainers.Trainer, pairs: Sequence[TokenPair], base: Base) -> None:
    """Raise Diverged unless the loss of the last few of `pairs` is what it must be before anything is trained."""
    pairs, model = list(pairs[-PAIRS:]), trainer.model
    fresh = base.adapter is None and hasattr(model, "disable_adapter")
    with scoring_mode(model), torch.no_grad(), trainer.accelerator.autocast():
        with model.disable_adapter() if fresh else contextlib.nullcontext():
            expected = start_value(job.config.dpo, [token_log_probs(model, pair) for pair in pairs])
        found = trainer.value_of(pairs)
    guards.check_value(found, expected, job.config.dpo, base.compute.dtype)
    job.run.update(start_value=found, start_value_expected=expected)
    name = "+".join(job.config.dpo.loss)
    job.say(f"no reference in {name}, none computed; its loss before step 1 is {found:.4f}, {expected:.4f} by hand")


Tokens = tuple[list[float], list[float], list[float]]
"""Log-probs of the tokens of a prompt (all but its first), of chosen and of rejected, nats."""


def start_value(dpo: Dpo, pairs: Sequence[Tokens]) -> float:
    """The loss of these pairs, by its paper's formula; of a reward model's zero head ln 2, whatever it reads."""
    if isinstance(dpo, Reward):
        return math.log(2)
    return sum(_preference(dpo, chosen, rejected) for _, chosen, rejected in pairs) / len(pairs) + _likelihood(
        dpo, pairs
    )


def _preference(dpo: Dpo, chosen: list[float], rejected: list[float]) -> float:
    means = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
    if isinstance(dpo, Simpo):
        return _softplus(-dpo.beta * (means[0] - means[1]) + dpo.beta * dpo.gamma_ratio)
    if isinstance(dpo, Cpo):
        return _softplus(-dpo.beta * (sum(chosen) - sum(rejected)))
    assert isinstance(dpo, Orpo)
    odds = [mean - math.log(-math.expm1(mean)) for mean in means]
    return dpo.beta * _softplus(odds[1] - odds[0])


def _likelihood(dpo: Dpo, pairs: Sequence[Tokens]) -> float:
    of = [[*(prompt if isinstance(dpo, Orpo) else []), *chosen] for prompt, chosen, _ in pairs]
    weight = dpo.cpo_alpha if isinstance(dpo, Cpo) else float(isinstance(dpo, Orpo))
    return -weight * sum(map(sum, of)) / sum(map(len, of))


def _softplus(x: float) -> float:
    """log(1 + e^x), which is -log sigma(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
