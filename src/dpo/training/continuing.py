"""Where a run goes on: its newest checkpoint, what that is bound to, and whether this attempt computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.config.identity import settings
from dpo.config.parse import plain
from dpo.errors import CheckpointError
from dpo.modeling.adapter import Adapter, keep_copy
from dpo.modeling.policy import REFERENCE
from dpo.records.files import write_sealed
from dpo.records.rows import Running
from dpo.training import checkpoints
from dpo.training.job import Job
from dpo.training.resumable import read_split

SPLIT_BY = ("hardware.token_budget", "hardware.memory_gb")


def find_checkpoint(job: Job, adapter: Adapter | None, report: Mapping[str, Any]) -> checkpoints.Checkpoint | None:
    """The verified checkpoint to continue from, or None to start at step 0; metrics after it are dropped.

    Only then are the facts of this attempt put down: run.json's, config.yaml, a copy of the adapter it starts from, and
    `report` as data.json.

    Raises CheckpointError when this attempt is not what the checkpoint's was, in anything that decides what is
    computed, or runs on another kind of device or number of ranks, whose steps would be equal up to rounding only.
    """
    found: checkpoints.Checkpoint | None = None
    anyway, run = job.config.resume_anyway, job.run

    def look() -> None:
        nonlocal found
        found = checkpoints.newest(run.folder / "checkpoints", job.say, run.record["id"])
        if found is None:
            run.continue_at(-1, Running().mark(), anyway, job.say)
        else:
            checkpoints.check_belongs(found, facts_of(job), anyway, job.say)
            run.continue_at(found.step, dict(found.facts.metrics), anyway, job.say)
            job.say(f"continuing at step {found.step}")
        write_sealed(run.folder / "data.json", {**report, "run": run.record["id"]})
        if adapter is not None:
            keep_copy(adapter, run.folder / REFERENCE)

    job.ranks.lead(look)
    found = job.ranks.from_first(found)
    if found is not None and not found.folder.is_dir():
        raise CheckpointError(f"{found.folder}: not there on this machine; $DPO_OUTPUTS must be a disk they all share")
    return found


def facts_of(job: Job) -> checkpoints.Facts:
    """What a checkpoint of this run is bound to, as it stands now."""
    record, metrics = job.run.record, job.run.metrics
    return checkpoints.Facts(
        run=record["id"],
        fingerprints=dict(record["fingerprints"]),
        settings=settings(plain(job.config)),
        metrics=metrics.mark() if metrics is not None else {},
    )


def kept_split(job: Job, checkpoint: checkpoints.Checkpoint | None) -> tuple[int, int] | None:
    """How the checkpoint's run split its steps, so that their rounding stays; None where another split is asked for,
    or the machine is of another kind."""
    if checkpoint is None:
        return None
    before, now = checkpoint.facts, facts_of(job)
    same = all(before.fingerprints.get(key) == now.fingerprints[key] for key in ("device", "processes"))
    if same and all(before.settings.get(key) == now.settings[key] for key in SPLIT_BY):
        return read_split(checkpoint.folder)
    for key in ("token_budget", "at_once"):
        job.run.record.pop(key, None)
    return None
