"""A file of rows that grows while figures are still to be made of it: what was added is found whole, or told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.records.files import naming, write_sealed, write_text
from dpo.records.read import json_file
from dpo.records.rows import Mark, Running, content, marked

Row = dict[str, Any]


@dataclass
class RowFile:
    """JSON Lines, and beside them a sealed file with two marks of them: before and after the latest change.

    The marks are written first, so that a kill at any moment leaves lines that one of them fits. Lines behind the mark
    that fits are those of a change that was killed. `way_out` ends the errors.
    """

    path: Path
    way_out: str
    _running: Running | None = None

    @property
    def marks(self) -> Path:
        """The file with the marks."""
        return self.path.with_name(f".{self.path.name}.marks")

    def read(self) -> list[Row]:
        """The rows; lines of a change that was killed are cut off the file. No file has no rows.

        Raises CheckpointError when the lines are not those that were written, or no rows.
        """
        data = content(self.path)
        kept = self._known(data) if data else b""
        try:
            rows = [json.loads(line) for line in kept.splitlines()]
        except (ValueError, RecursionError):
            raise CheckpointError(f"{self.path}: a line of it is not readable\n{self.way_out}") from None
        if not all(isinstance(row, dict) for row in rows):
            raise CheckpointError(f"{self.path}: a line of it is no row\n{self.way_out}")
        if len(kept) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(kept))
        self._running = Running(kept)
        return rows

    def _known(self, data: bytes) -> bytes:
        found = json_file(self.marks)
        if "after" not in found or "before" not in found:
            # Nobody vouches for rows of a version that kept no marks, nor for rows whose marks were deleted.
            return data[: data.rfind(b"\n") + 1]
        for name in ("after", "before"):
            if (kept := marked(data, found[name])) is not None:
                return kept
        raise CheckpointError(
            f"{self.path}: not as it was written: {self.marks.name} knows lines of another hash\n{self.way_out}"
        )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, at once on disk."""
        if self._running is None:
            self.read()
        assert self._running is not None
        text = lines(rows)
        before = self._running.mark()
        self._running.add(text.encode())
        self._vouch(before, self._running)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rows, which `read` need not have seen."""
        text = lines(rows)
        before = Running(content(self.path)).mark()
        self._running = Running(text.encode())
        self._vouch(before, self._running)
        write_text(self.path, text)

    def _vouch(self, before: Mark, after: Running) -> None:
        write_sealed(self.marks, {"before": before, "after": after.mark()})


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
