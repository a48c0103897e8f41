"""metrics.jsonl as its one writer keeps it: one line a logged step, under a running hash (see `rows`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dpo.errors import CheckpointError
from dpo.records.files import naming, write_text
from dpo.records.rows import Mark, Running, content, marked

Say = Callable[[str], None]
ROUNDING = 1e-5
"""A mean margin below it is rounding."""


class Metrics:
    """The lines of a run that begins, or goes on after `rewind`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._running = Running()

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        line = json.dumps({"step": step, "kind": kind, "time": round(time.time(), 3), **values}) + "\n"
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
        self._running.add(line.encode())

    def mark(self) -> Mark:
        """The mark of all lines, which are on disk before anybody remembers it."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self._running.mark()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of `step` is logged."""
        lines = content(self.path).decode(errors="replace").splitlines()
        return any(_step(line) == step and json.loads(line).get("kind") == "eval" for line in lines)

    def rewind(self, step: int, mark: Mark, later: Mark, anyway: bool, say: Say) -> Callable[[], None]:
        """Go back to where a checkpoint of `step` remembers `mark`; returns what drops the lines behind it.

        Of the lines behind it, those of `step` itself (its evaluation) stay if `later`, a mark the run kept since,
        vouches for them. Raises CheckpointError when the lines are not those of the mark, unless `anyway`.
        """
        data = content(self.path)
        kept = marked(data, mark)
        if kept is None:
            if not anyway:
                raise CheckpointError(
                    f"{self.path}: its first {mark.get('lines')} lines are not what had been logged by step {step}\n"
                    "resume_anyway=true continues with what is left of them; resume=never starts anew"
                )
            kept = _until(step, data)
            say(f"continuing although {self.path} is not as it was logged; {len(kept.splitlines())} of its lines stay")
        else:
            known = marked(data, later) or b""
            kept += _until(step, known[len(kept) :]) if known.startswith(kept) else b""
        self._running = Running(kept)

        def drop() -> None:
            if kept != data:
                write_text(self.path, kept.decode())

        return drop


def _until(step: int, lines: bytes) -> bytes:
    """The lines up to a step; what is no line of a run, or torn, is left out."""
    kept = [line for line in lines.decode(errors="replace").splitlines() if _step(line) <= step]
    return "".join(f"{line}\n" for line in kept).encode()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):  # a line torn by a kill
        return float("inf")


def tied(row: Mapping[str, float]) -> bool:
    """Whether a line is of a policy that has not moved, at the start and as long as the rate is 0: every reward is 0
    and every pair a tie, and what rounding makes of that is no accuracy."""
    margin = row.get("rewards/margins")
    return margin is not None and abs(margin) < ROUNDING
