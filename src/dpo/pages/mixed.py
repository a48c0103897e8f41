"""The parts of a mixture as a table: what was read of each, what is used, and what refused."""

from __future__ import annotations

from typing import Any

PART_COLUMNS = ("part", "rows", "refused", "trained on", "of", "dev", "test", "licence")


def part_rows(report: dict[str, Any]) -> list[list[Any]]:
    """A row for each part; `of` is how many training pairs it has, of which its weight takes as many as are used."""
    return [
        [
            name,
            sum(part["rows"].values()),
            ", ".join(f"{found['count']} {why}" for why, found in part["refused"].items() if found["count"]) or "none",
            part["used"]["train"],
            part["kept"]["train"],
            part["used"]["dev"],
            part["used"]["test"],
            part["licence"] or "not stated",
        ]
        for name, part in (report.get("parts") or {}).items()
    ]
