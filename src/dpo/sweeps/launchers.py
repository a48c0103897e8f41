"""Where a sweep's jobs run: `hydra/launcher=NAME` names a function of this table. Every job is the same processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpo.config.schema import Config
from dpo.config.sweeps import Launcher, Ray, Submitit
from dpo.errors import ConfigError
from dpo.sweeps.local import run_local
from dpo.sweeps.progress import SweepProgress
from dpo.sweeps.slots import find_slots
from dpo.sweeps.task import Task

# (tasks that are not done, their configs, the launcher's keys, name of the sweep's evaluation)
Launch = Callable[[list[Task], list[Config], Any, str | None], None]


def local(tasks: list[Task], configs: list[Config], settings: Launcher, evaluation: str | None) -> None:
    """Processes of this machine."""
    slots = find_slots(settings.slots, configs)
    print(f"local launcher, {slots}", flush=True)
    with SweepProgress(tasks, evaluation) as progress:
        run_local(tasks, slots, progress.ended, progress.look)


def submitit_slurm(tasks: list[Task], configs: list[Config], settings: Submitit, evaluation: str | None) -> None:
    """Slurm."""
    _submitit(tasks, settings, evaluation, "slurm")


def submitit_local(tasks: list[Task], configs: list[Config], settings: Submitit, evaluation: str | None) -> None:
    """submitit's own processes on this machine."""
    _submitit(tasks, settings, evaluation, "local")


def _submitit(tasks: list[Task], settings: Submitit, evaluation: str | None, cluster: str) -> None:
    try:
        from dpo.sweeps.clusters import run_submitit
    except ModuleNotFoundError:
        raise ConfigError(f"hydra/launcher=submitit_{cluster}: pip install 'dpo-train[slurm]'") from None
    with SweepProgress(tasks, evaluation) as progress:
        run_submitit(tasks, settings, cluster, progress.ended, progress.look)


def ray(tasks: list[Task], configs: list[Config], settings: Ray, evaluation: str | None) -> None:
    """A Ray cluster."""
    try:
        from dpo.sweeps.ray_cluster import run_ray
    except ModuleNotFoundError:
        raise ConfigError("hydra/launcher=ray: pip install 'dpo-train[ray]'") from None
    with SweepProgress(tasks, evaluation) as progress:
        run_ray(tasks, settings, progress.ended, progress.look)


LAUNCHERS: dict[str, Launch] = {
    "local": local,
    "submitit_slurm": submitit_slurm,
    "submitit_local": submitit_local,
    "ray": ray,
}
