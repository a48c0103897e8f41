"""The forecast of a run that begins: put down before anything is computed, to stand beside what was measured."""

from __future__ import annotations

from dataclasses import asdict

from dpo.config.losses import REFERENCE_FREE
from dpo.data.prepare import Prepared
from dpo.engine.work import work_of
from dpo.planning.cost import hours, rates_of
from dpo.planning.lengths import Lengths
from dpo.planning.measure import amounts
from dpo.training.job import Job
from dpo.training.trainer import Trainer


def forecast(job: Job, trainer: Trainer, data: Prepared) -> None:
    """Say what the run will do, and how long that took earlier runs of this model here; run.json keeps both."""
    if not job.ranks.first:
        return
    config = job.config
    lengths = Lengths.of(data, config)
    work = work_of(trainer.model, bool(trainer.args.activation_checkpointing))
    found = amounts(config, lengths, trainer.engine, work, bool(REFERENCE_FREE & set(config.dpo.loss)))
    rates = rates_of(config, job.run.record["fingerprints"]["device"])
    seconds = [found.train_flops / rate for rate in (rates[-1], rates[0])] if rates else None
    job.run.update(forecast={**asdict(found), "seconds": seconds})
    time = f", {hours(seconds[0])} to {hours(seconds[1])} by earlier runs of this model here" if seconds else ""
    job.say(
        f"forecast: {found.steps} steps, {found.tokens} tokens, {found.train_flops / 1e12:.3g} TFLOP{time}; "
        f"TRL's default step {found.trl_flops / 1e12:.3g} TFLOP"
    )
