"""trackio: a local-first tracker with W&B's calls; runs land in its SQLite folder ($TRACKIO_DIR)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo.config.tracking import Trackio
from dpo.records.tracking.identity import Identity
from dpo.records.tracking.tracker import Evaluated


class TrackioTracker:
    """One trackio run. Its name is the run's: trackio finds a continued run by name."""

    def __init__(self, settings: Trackio, folder: Path, config: Mapping[str, Any], who: Identity) -> None:
        import trackio
        from trackio.utils import TRACKIO_DIR

        # It prints a page about its dashboard; ours is one line.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=settings.project,
                name=who.name,
                group=who.group,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
                config={**config, "id": who.id},
            )
        self._step = 0
        self._adapter = settings.adapter
        self.known = {"backend": "trackio", "name": who.name, "id": who.id}
        self.where = f"trackio, {TRACKIO_DIR} (see `trackio show --project {settings.project}`)"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._step = step
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step}, step=step)

    def show(self, found: Evaluated) -> None:
        """See Tracker."""
        import trackio

        self._step = found.step
        figures = {f"{found.key}/{name}": value for name, value in found.figures.items()}
        table = trackio.Table(columns=list(found.columns), data=[list(row) for row in found.samples])
        self._run.log({**figures, f"{found.key}/samples": table, "step": found.step}, step=found.step)
        if found.report is not None:
            self._run.log_artifact(found.report, name=f"{found.key.replace('/', '-')}-{self._run.name}", type="report")

    def keep(self, adapter: Path) -> None:
        """See Tracker."""
        if self._adapter:
            self._run.log_artifact(adapter, name=f"adapter-{self._run.name}", type="model")

    def finish(self, exit_code: int) -> None:
        """See Tracker. trackio knows no state of a run, so its exit code is a metric; one without it was killed."""
        self._run.log({"exit_code": exit_code}, step=self._step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
