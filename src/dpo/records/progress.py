"""Progress of a run and of its stages: a live bar on a terminal, compact lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpo.records.metrics import tied
from dpo.records.terminal import console as made

LINE_SECONDS = 10.0
SHARE_TO_TELL = 0.1


class TrainingProgress:
    """Shows step, ETA, loss, margin, accuracy and pairs/s; use as a context manager around the steps."""

    def __init__(self, max_steps: int, start_step: int, batch_size: int, console: Console | None = None) -> None:
        self.console = console or made()
        self.max_steps, self.start_step, self.batch_size = max_steps, start_step, batch_size
        self.began = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> TrainingProgress:
        self.began = time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.max_steps, completed=self.start_step)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def pairs_per_second(self, step: int) -> float:
        """Mean since this process began stepping, evaluations included."""
        return (step - self.start_step) * self.batch_size / max(1e-9, time.monotonic() - self.began)

    def show(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One logged step, or one evaluation."""
        text = _figures(values)
        if kind == "eval":
            self.console.print(f"dev at step {step}: {text}", highlight=False)
            for part in [name.removesuffix("loss") for name in values if name.endswith("/loss")]:
                own = {name.removeprefix(part): value for name, value in values.items() if name.startswith(part)}
                self.console.print(f"  {part[:-1]}: {_figures(own)}", highlight=False)
            return
        rate = self.pairs_per_second(step)
        text += f"  {rate:.2f} {'prompts' if 'reward' in values else 'pairs'}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        left = (self.max_steps - step) * self.batch_size / rate if rate > 0 else 0.0
        self.console.print(f"step {step}/{self.max_steps}  {text}  {_clock(left)} left", highlight=False)


def _figures(values: dict[str, float]) -> str:
    if "reward" in values:
        length, cut = values["completions/mean_length"], values["completions/clipped_ratio"]
        return f"reward {values['reward']:+.3f}  KL {values['kl']:.3f}  {length:.0f} tokens  cut {cut:.0%}"
    accuracy = "ties" if tied(values) else f"{values['rewards/accuracies']:.2f}"
    return f"loss {values['loss']:.4f}  margin {values['rewards/margins']:+.3f}  accuracy {accuracy}"


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

    def reach(self, done: int, total: int) -> None:
        """`done` of `total` items are done; for who learns on the way how many there are."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)
        self.advance(done - self.done)

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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
