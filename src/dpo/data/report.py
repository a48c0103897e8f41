"""What became of every row: kept, or refused by name, with row ids. Serialized as data.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dpo.config.datasets import OnBad
from dpo.data.refusal import Reason, Refusal
from dpo.errors import DataError

SPLITS = ("train", "dev", "test")


@dataclass
class DataReport:
    """Counts and ids over all splits of a load: rows read = kept + refused, for each split."""

    source: str
    origin: str
    revision: str | None = None
    licence: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    stopped_at_limit: bool = False

    def refuse(self, row_id: str, reason: Reason) -> None:
        """Count one row as not used."""
        self.refused.setdefault(reason.value, []).append(row_id)

    def note(self, row_id: str, what: str) -> None:
        """Count something about a row that is used."""
        self.notes.setdefault(what, []).append(row_id)

    def count(self, reason: Reason) -> int:
        """Rows refused for one reason."""
        return len(self.refused.get(reason.value, []))

    @property
    def dropped(self) -> int:
        """Rows refused for any reason."""
        return sum(len(ids) for ids in self.refused.values())

    @property
    def duplicates(self) -> int:
        return self.count(Reason.duplicate)

    def summary(self) -> str:
        """Rows read and why they were refused, in one line."""
        why = ", ".join(f"{len(ids)} {name}" for name, ids in sorted(self.refused.items())) or "none"
        return f"{sum(self.rows.values())} rows read; refused: {why}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: counts first, then the ids behind them."""
        return {
            "source": self.source,
            "origin": self.origin,
            "revision": self.revision,
            "licence": self.licence,
            "rows": {split: self.rows.get(split, 0) for split in SPLITS},
            "kept": {split: self.kept.get(split, 0) for split in SPLITS},
            "stopped_at_limit": self.stopped_at_limit,
            "refused": {name: {"count": len(ids), "ids": ids} for name, ids in sorted(self.refused.items())},
            "noted": {name: {"count": len(ids), "ids": ids} for name, ids in sorted(self.notes.items())},
        }


@dataclass
class Faults:
    """Collects what `on_bad=error` reports: the first three structural faults and how many there are."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, place: str, row: int | str, refusal: Refusal, line: Callable[[], int | None] = lambda: None) -> None:
        """Remember one fault as `file:row/field: reason, line N`, rows counted from 0 as in every report; `line` gives
        the one that an editor shows, where there is one."""
        self.count += 1
        if len(self.lines) < 3:
            where = f"{place}:{row}/{refusal.field}" if refusal.field else f"{place}:{row}"
            shown = line()
            self.lines.append(f"{where}: {refusal}"[:300] + ("" if shown is None else f", line {shown}"))

    def settle(self, on_bad: OnBad, rows: int) -> None:
        """Raise a DataError with what was collected, if the dataset asks for that."""
        if not self.count or on_bad is not OnBad.error:
            return
        count = f" ({self.count} bad of {rows} rows; dataset.on_bad=drop drops and counts them)"
        raise DataError("\n".join([*self.lines[:-1], self.lines[-1] + count]))
