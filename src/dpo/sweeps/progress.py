"""A sweep's progress: one line a job as it ends, and on a terminal a live line for each that runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dpo.pages.tables import clock
from dpo.records.overview import run_status
from dpo.records.terminal import console as made
from dpo.streams import clean
from dpo.sweeps.files import ending, read_job

LOOK_SECONDS = 1.0


class Named(Protocol):
    """What is shown of a job: its label, and its folder by its name in the sweep's."""

    @property
    def label(self) -> str:
        """What tells it from the others."""

    @property
    def root(self) -> Path:
        """The sweep's folder."""

    @property
    def name(self) -> str:
        """Its own folder in that."""


class SweepProgress:
    """Use as a context manager around a launcher's work."""

    def __init__(self, tasks: Sequence[Named], evaluation: str | None, console: Console | None = None) -> None:
        self.console = console or made()
        self.total, self.over, self.evaluation = len(tasks), 0, evaluation
        self._live: Live | None = None
        self._looked = 0.0
        self._began: dict[str, float] = {}

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def ended(self, task: Named) -> None:
        """One line: how it ended and how long it took here."""
        self.over += 1
        job = read_job(task.root, {"label": task.label, "folder": task.name, "values": {}}, self.evaluation)
        began = self._began.pop(task.name, None)
        took = "" if began is None else f", {clock(time.monotonic() - began)}"
        self.console.print(Text(clean(f"[{self.over}/{self.total}] {task.label}: {ending(job)}{took}")), soft_wrap=True)

    def look(self, running: Sequence[Named]) -> None:
        """Show what runs now."""
        now = time.monotonic()
        for task in running:
            self._began.setdefault(task.name, now)
        if self._live is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._live.update(Group(*(Text(clean(self._line(task))) for task in running)), refresh=True)

    def _line(self, task: Named) -> str:
        folder = task.root / task.name
        if not (folder / "run.json").is_file():
            return f"  {task.label}: starting"
        run = run_status(folder)
        if run.state != "running":
            return f"  {task.label}: {'evaluating' if run.state == 'complete' else run.state}"
        words = [f"step {run.step}/{run.max_steps or '?'}"]
        words += [] if run.loss is None else [f"loss {run.loss:.4f}"]
        words += [] if run.eta is None else [f"{clock(run.eta)} left"]
        return f"  {task.label}: {', '.join(words)}"
