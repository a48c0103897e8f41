"""One job of a sweep as a launcher sees it: processes to run one after another, and what became of them on disk."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from dpo.config.arguments import quoted
from dpo.errors import CheckpointError, ConfigError
from dpo.records.date import DATE
from dpo.records.process import process_mark
from dpo.records.run import read_record, state_of
from dpo.sweeps.files import Outcome, date_of, read_outcome, write_outcome
from dpo.sweeps.orphan import VARIABLE


@dataclass(frozen=True)
class Task:
    """One job: its folder in the sweep's, the words of its training command, and of its evaluation if it gets one.

    `gpus` is how many it takes, None all there are; on a machine without GPUs every job takes one slot.
    """

    label: str
    root: Path
    name: str
    overrides: tuple[str, ...]
    evaluation: str | None
    evaluate: tuple[str, ...]
    gpus: int | None

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.root / self.name

    def left(self) -> Iterator[tuple[str, list[str]]]:
        """(phase, command) of what is not done yet; the second is only asked for when the first has succeeded."""
        if not self.trained():
            yield "train", [sys.executable, "-m", "dpo.train", *self.overrides, "hydra.mode=RUN"]
        if not self.evaluated():
            yield "evaluate", [sys.executable, "-m", "dpo.evaluate", f"run={quoted(self.folder)}", *self.evaluate]

    def trained(self) -> bool:
        """Whether the run has reached its last step."""
        try:
            return state_of(read_record(self.folder)) == "complete"
        except (CheckpointError, ConfigError):
            return False  # none yet, or a damaged one, which its own process will name

    def evaluated(self) -> bool:
        """Whether its evaluation is complete, or none is wanted."""
        return self.evaluation is None or (self.folder / "evaluation" / self.evaluation / "summary.json").is_file()

    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained() and self.evaluated()

    def busy(self) -> bool:
        """Whether a process that an earlier sweep started here still writes to the folder; it ends by itself."""
        last = read_outcome(self.root, self.name)
        return last is not None and last.alive

    def start(self, phase: str, command: list[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start one of its processes; output is added to the job's log."""
        environment = {
            **os.environ,
            **more,
            "DPO_RUN_FOLDER": str(self.folder),
            "DPO_SWEEP": self.root.name,
            DATE: date_of(self.root),
            VARIABLE: str(os.getpid()),
        }
        with (self.root / f"{self.name}.log").open("ab") as out:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C reaches the sweep alone, which passes it on once.
                start_new_session=True,
            )
        born, mark = psutil.Process(process.pid).create_time(), process_mark(process.pid)
        write_outcome(self.root, self.name, Outcome(phase, None, socket.gethostname(), process.pid, born, mark))
        return process

    def ended(self, code: int) -> None:
        """Keep the exit code on disk; a process that was killed could not write it itself."""
        last = read_outcome(self.root, self.name)
        assert last is not None
        write_outcome(self.root, self.name, dataclasses.replace(last, exit_code=code))


def run_task(task: Task, environment: Mapping[str, str]) -> int:
    """Run what is left of a task here and wait for it; the exit code of the first process that failed, or 0."""
    for phase, command in task.left():
        code = task.start(phase, command, environment).wait()
        task.ended(code)
        if code != 0:
            return code
    return 0
