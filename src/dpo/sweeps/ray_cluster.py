"""Sweeps as Ray tasks, on a running cluster or on one started here for the sweep. Needs the extra `ray`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ray

from dpo.config.sweeps import Ray
from dpo.errors import Interrupted
from dpo.sweeps.task import Task, run_task
from dpo.training.interrupts import Interrupts

LOOK_SECONDS = 0.5


def run_ray(tasks: list[Task], settings: Ray, tell: Callable[[Task], None], look: Callable[[list[Task]], None]) -> None:
    """Run all tasks; Ray finds each its CPUs and GPUs, on whichever node has them. A job that is lost with its node
    or its worker ends there; the same command runs it again."""
    # Usage reports would be a request to the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=settings.address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    environment = {"OMP_NUM_THREADS": str(max(1, int(settings.num_cpus)))}
    remote = ray.remote(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_retries=0)(run_task)
    waiting, running = list(tasks), dict[Any, Task]()
    room = settings.slots or len(tasks)
    try:
        with Interrupts():
            while waiting or running:
                for task in [task for task in waiting if not task.busy()][: max(0, room - len(running))]:
                    waiting.remove(task)
                    running[remote.remote(task, environment)] = task
                for reference in ray.wait(list(running), timeout=0)[0] if running else []:
                    tell(running.pop(reference))
                look(list(running.values()))
                time.sleep(LOOK_SECONDS)
    except Interrupted:
        for reference in running:
            ray.cancel(reference)
        raise
    finally:
        ray.shutdown()
