"""The reward model that a run is trained on: found, checked and recorded before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from dpo.config.losses import Rloo
from dpo.config.read import read_config
from dpo.errors import ConfigError
from dpo.modeling.facts import check_final
from dpo.modeling.reward_head import is_reward
from dpo.records.naming import run_folder
from dpo.records.parents import distinct, parents_by
from dpo.records.run import read_record
from dpo.training.job import Job


def find_reward(job: Job) -> None:
    """Record the reward model of dpo.reward as a parent and a fingerprint; nothing heavy is loaded.

    Raises ConfigError where it is none, or reads token ids of another tokenizer; CheckpointError where it is not what
    its training wrote.
    """
    run = reward_run(job)
    record = read_record(run)
    if not is_reward(read_config(run / "config.yaml")):
        raise ConfigError(f"dpo.reward={run}: not a run of dpo=reward")
    check_final(run)
    theirs, own = record["fingerprints"].get("tokenizer"), job.run.record["fingerprints"]["tokenizer"]
    if theirs != own:
        raise ConfigError(
            f"dpo.reward={run}: was trained with another tokenizer or template ({theirs}, here {own}); it would read "
            "other token ids than it knows"
        )
    job.run.record["fingerprints"]["reward"] = str(record.get("id"))
    job.run.record["parents"] = distinct([*job.run.record["parents"], *parents_by("reward", run)])


def reward_run(job: Job) -> Path:
    """Its folder."""
    assert isinstance(job.config.dpo, Rloo)
    return run_folder(job.config.dpo.reward, "dpo.reward")
