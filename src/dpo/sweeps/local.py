"""The local launcher: one process a job, N at a time, each pinned to its GPU or share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dpo.errors import Interrupted
from dpo.sweeps.slots import Slots
from dpo.sweeps.task import Task
from dpo.training.interrupts import Interrupts

LOOK_SECONDS = 0.1


@dataclass
class _Active:
    task: Task
    taken: list[int]
    environment: dict[str, str]
    left: Iterator[tuple[str, list[str]]]
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool:
        """Start the next process when there is none; whether the task is over."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return False
            self.process = None
            self.task.ended(code)
            if code != 0:
                return True
        phase, command = next(self.left, ("", []))
        if not command:
            return True
        self.process = self.task.start(phase, command, self.environment)
        return False


def run_local(
    tasks: list[Task], slots: Slots, tell: Callable[[Task], None], look: Callable[[list[Task]], None]
) -> None:
    """Run all tasks; `tell` hears of each that is over, `look` now and then of those that run.

    A signal is passed on to every job once; when all have ended, Interrupted is raised. A second one kills them.
    """
    waiting, active = list(tasks), list[_Active]()
    try:
        with Interrupts():
            while waiting or active:
                _fill(waiting, active, slots)
                for one in list(active):
                    if one.advance():
                        active.remove(one)
                        slots.give(one.taken)
                        tell(one.task)
                look([one.task for one in active])
                time.sleep(LOOK_SECONDS)
    except BaseException:
        _stop(active)
        raise


def _fill(waiting: list[Task], active: list[_Active], slots: Slots) -> None:
    """Start what there is room for, in order; a task that a killed sweep's process is still ending waits its turn."""
    for task in list(waiting):
        taken = slots.take(task.gpus)
        if taken is None:
            return
        if task.busy():
            slots.give(taken)
            continue
        waiting.remove(task)
        active.append(_Active(task, taken, slots.environment(taken), task.left()))


def _stop(active: list[_Active]) -> None:
    """End every job at its next safe point, or at once when another signal comes meanwhile."""
    processes = [(one, one.process) for one in active if one.process is not None]
    for _, process in processes:
        process.send_signal(signal.SIGTERM)
    try:
        with Interrupts():
            for _, process in processes:
                process.wait()
    except Interrupted:
        for _, process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for one, process in processes:
        one.task.ended(process.wait())
