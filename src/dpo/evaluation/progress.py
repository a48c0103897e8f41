"""Progress of an evaluation's stages: a live bar on a terminal, a compact line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpo.records.terminal import console as made

LINE_SECONDS = 10.0
SHARE_TO_TELL = 0.1


class StageProgress:
    """Counts `total` items of one stage; use as a context manager."""

    def __init__(self, what: str, total: int, done: int = 0, console: Console | None = None) -> None:
        self.what, self.total, self.done = what, total, done
        self.console = console or made()
        self._bar: Progress | None = None

    def __enter__(self) -> StageProgress:
        self._began = self._spoke = time.monotonic()
        self._before = self.done
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and time.monotonic() - self._began > 2:
            self.console.print(f"{self.what}: {self.done} in {time.monotonic() - self._began:.0f} s", highlight=False)

    def advance(self, count: int) -> None:
        """`count` more items are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if now - self._spoke >= LINE_SECONDS and self.done < self.total:
            self._spoke = now
            new = self.done - self._before
            # The first answers of a batch end long before the rest: they say nothing about how long it takes.
            known = new >= SHARE_TO_TELL * (self.total - self._before)
            left = f", {(self.total - self.done) * (now - self._began) / new:.0f} s left" if known else ""
            self.console.print(f"{self.what}: {self.done}/{self.total}{left}", highlight=False)
