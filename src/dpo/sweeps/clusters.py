"""Sweeps through submitit: Slurm jobs, or its processes on this machine. Needs the extra `slurm`."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit

from dpo.config.sweeps import Submitit
from dpo.errors import ConfigError, Interrupted
from dpo.records.files import write_text
from dpo.sweeps.files import Outcome, read_outcome, write_outcome
from dpo.sweeps.task import Task, run_task
from dpo.training.interrupts import Interrupts

LOOK_SECONDS = 1.0


def build_executor(root: Path, settings: Submitit, cluster: str) -> submitit.AutoExecutor:
    """submitit's executor with what the launcher's keys ask of every job; raises ConfigError without a Slurm."""
    try:
        executor = submitit.AutoExecutor(folder=root / ".submitit", cluster=cluster)
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=submitit_{cluster}: {error}") from None
    wanted: dict[str, Any] = {
        "name": root.name,
        "timeout_min": settings.timeout_min,
        "cpus_per_task": settings.cpus_per_task,
        "gpus_per_node": settings.gpus_per_node,
        "mem_gb": settings.mem_gb,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_setup": settings.setup or None,
        "slurm_additional_parameters": settings.additional_parameters or None,
        "slurm_array_parallelism": settings.slots,
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def run_submitit(
    tasks: list[Task],
    settings: Submitit,
    cluster: str,
    tell: Callable[[Task], None],
    look: Callable[[list[Task]], None],
) -> None:
    """Submit all tasks and wait for them. Jobs that an earlier, killed sweep has in the queue are waited for, not
    submitted again; an interrupted sweep takes its jobs out of the queue."""
    root = tasks[0].root
    executor = build_executor(root, settings, cluster)
    environment = {"OMP_NUM_THREADS": str(settings.cpus_per_task)}
    running = {task: job for task in tasks if (job := _queued(task, cluster)) is not None}
    waiting = [task for task in tasks if task not in running]
    # submitit's local executor starts whatever it is given at once; Slurm holds an array to its parallelism itself.
    room = len(tasks) if cluster == "slurm" else settings.slots or len(tasks)
    try:
        with Interrupts():
            while waiting or running:
                # What a killed sweep's local processes are still ending waits its turn.
                batch = [task for task in waiting if not task.busy()][: max(0, room - len(running))]
                waiting = [task for task in waiting if task not in batch]
                running |= _submit(executor, batch, environment, cluster)
                for task, job in list(running.items()):
                    if job.done():
                        del running[task]
                        _note_ending(task, job)
                        tell(task)
                look(list(running))
                time.sleep(LOOK_SECONDS)
    except Interrupted:
        for job in running.values():
            job.cancel()
        raise


def _submit(
    executor: submitit.AutoExecutor, batch: list[Task], environment: dict[str, str], cluster: str
) -> dict[Task, Any]:
    if not batch:
        return {}
    with executor.batch():
        jobs = [executor.submit(run_task, task, environment) for task in batch]
    for task, job in zip(batch, jobs, strict=True):
        write_text(task.root / f"{task.name}.{cluster}", f"{job.job_id}\n")
    return dict(zip(batch, jobs, strict=True))


def _queued(task: Task, cluster: str) -> Any:
    """The task's job of an earlier sweep when it is still in Slurm's hands."""
    number = task.root / f"{task.name}.{cluster}"
    if cluster != "slurm" or not number.is_file():
        return None
    job: Any = submitit.SlurmJob(folder=task.root / ".submitit", job_id=number.read_text().strip())
    return None if job.done(force_check=True) else job


def _note_ending(task: Task, job: Any) -> None:
    """A job that was cancelled, timed out or lost its node could not keep its exit code; the scheduler knows."""
    last = read_outcome(task.root, task.name)
    if last is None or last.exit_code is None:
        last = last or Outcome("train", None, socket.gethostname(), os.getpid(), 0.0)
        with (task.root / f"{task.name}.log").open("a") as log:
            log.write(f"error: job {job.job_id} of {socket.gethostname()}: {job.state}\n")
        write_outcome(task.root, task.name, dataclasses.replace(last, exit_code=1))
