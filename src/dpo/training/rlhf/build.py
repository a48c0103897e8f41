"""What a run of RLHF's objectives is built from besides a run's own parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dpo.config.losses import Rloo
from dpo.engine.micro_batch import packed_figures, padded_figures
from dpo.engine.reward_model import RewardModel
from dpo.modeling.tokenizer import stop_tokens
from dpo.training.base import Base
from dpo.training.job import Job
from dpo.training.rlhf.draws import Drawing
from dpo.training.rlhf.parent import reward_run
from dpo.training.rlhf.rloo import RlooTrainer, in_groups, rloo_loss


def finish_rloo(job: Job, base: Base, trainer: Any) -> None:
    """Give the trainer its reward model, how it draws, and the loss and split of its engine."""
    dpo, record = job.config.dpo, job.run.record
    assert isinstance(dpo, Rloo)
    assert isinstance(trainer, RlooTrainer)
    trainer.reward_model = RewardModel(reward_run(job), base.compute)
    end = int(record["end_of_turn"])
    trainer.drawing = Drawing(
        samples=dpo.samples,
        max_new_tokens=dpo.max_new_tokens,
        cut_penalty=dpo.cut_penalty,
        stop_ids=frozenset(stop_tokens(trainer.model, base.tokenizer, end)),
        end_id=end,
        pad_id=base.tokenizer.pad_token_id,
    )
    trainer.phase = job.ledger.phase
    each, name = trainer.drawing.pairs, trainer.engine.name
    forward = packed_figures if name == "packed" else padded_figures
    loss = rloo_loss(forward, dpo.beta, each, lambda: trainer.rewards)
    trainer.engine = replace(trainer.engine, loss=loss, split=in_groups(each, name))
    job.say(f"{dpo.samples} answers a prompt, scored by {dpo.reward}")
