"""TensorBoard event files in the run directory, written without torch or TensorFlow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo.config.tracking import Tensorboard
from dpo.records.tracking.identity import Identity
from dpo.records.tracking.tracker import Evaluated


class TensorboardTracker:
    """`<run>/tensorboard/`; a continued run adds an event file that purges the steps it does again."""

    def __init__(self, settings: Tensorboard, folder: Path, config: Mapping[str, Any], who: Identity) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        logs = folder / "tensorboard"
        self._continued = any(logs.glob("events.*")) if logs.is_dir() else False
        self._writer = EventFileWriter(str(logs), flush_secs=10)
        about = {"name": who.name, "id": who.id, "group": who.group}
        self.known = {"backend": "tensorboard", "name": who.name, "id": who.id}
        for name, value in (("run", about), ("config", dict(config))):
            self._text(name, json.dumps(value, indent=2))
        root = folder.absolute().parents[1]
        self.where = f"tensorboard, {logs} (see `tensorboard --logdir {root}`)"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._continued:
            self._add(step, session_log=SessionLog(status=SessionLog.START))
            self._continued = False
        found = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=found))

    def show(self, found: Evaluated) -> None:
        """See Tracker. The answers are a table of the text plugin, which renders Markdown."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        figures = [Summary.Value(tag=f"{found.key}/{name}", simple_value=v) for name, v in found.figures.items()]
        self._add(found.step, summary=Summary(value=figures))
        rows = [list(found.columns), ["---"] * len(found.columns), *found.samples]
        table = "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
        self._add(found.step, summary=text_pb(f"{found.key}/samples", table))
        self._text(f"{found.key}/report", str(found.report))

    def keep(self, adapter: Path) -> None:
        """Nothing: event files lie beside the adapter."""

    def finish(self, exit_code: int) -> None:
        """See Tracker."""
        self._text("exit_code", str(exit_code))
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        # The plugin renders Markdown; indented by four it stays as it is.
        shown = "\n".join(f"    {line}" for line in text.splitlines())
        self._add(0, summary=text_pb(name, shown))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))


def _cell(text: str) -> str:
    """A text that stays in its cell, and is no markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>])", r"\\\1", " ".join(text.split()))
