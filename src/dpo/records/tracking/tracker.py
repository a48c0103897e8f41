"""What a run tells a tracker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Longer than any backend's own limit.
FINISH_SECONDS = 20.0


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as a tracker shows it on its run's page: figures (each with `_low` and `_high` where it has an
    interval), answers before and after, and the page that explains both. `key` is what all of it stands under; `last`
    are the latest figures of training, by their names in the tracker."""

    key: str
    step: int
    figures: Mapping[str, float]
    last: Mapping[str, float]
    columns: Sequence[str]
    samples: Sequence[Sequence[str]]
    report: Path | None


class Tracker(Protocol):
    """One open run in a tracker; `where` is a line for the terminal, `known` what finds the run again."""

    where: str
    known: Mapping[str, str]

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step under `train/...` or `eval/...`. Never raises, never waits for a network."""

    def show(self, found: Evaluated) -> None:
        """An evaluation of this run. Never raises."""

    def keep(self, adapter: Path) -> None:
        """The trained adapter, where the settings ask for it; its upload is waited for. Never raises."""

    def finish(self, exit_code: int) -> None:
        """Close within seconds; a non-zero code marks the run failed. Never raises."""


class Guarded:
    """A tracker whose faults never reach the run: the first is said, and what follows is not logged there."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._broken = tracker, False
        self.where, self.known = tracker.where, tracker.known

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        if not self._broken:
            self._try(lambda: self._tracker.log(kind, step, values))

    def show(self, found: Evaluated) -> None:
        """See Tracker."""
        if not self._broken:
            self._try(lambda: self._tracker.show(found))

    def keep(self, adapter: Path) -> None:
        """See Tracker."""
        if not self._broken:
            self._try(lambda: self._tracker.keep(adapter))

    def finish(self, exit_code: int) -> None:
        """See Tracker. In a thread, because a client's own limits have been seen to be none."""
        done = threading.Thread(target=lambda: self._try(lambda: self._tracker.finish(exit_code)), daemon=True)
        done.start()
        done.join(FINISH_SECONDS)
        if done.is_alive():
            print(f"tracking: not finished after {FINISH_SECONDS:.0f} s, left behind", flush=True)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a client raises, training goes on
            self._broken = True
            print(f"tracking: broke off ({type(error).__name__}); metrics go on in the run directory", flush=True)


class NoTracker:
    """Only the run directory."""

    where = "run directory only"
    known: Mapping[str, str] = {}

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def show(self, found: Evaluated) -> None:
        """Nothing."""

    def keep(self, adapter: Path) -> None:
        """Nothing."""

    def finish(self, exit_code: int) -> None:
        """Nothing."""
