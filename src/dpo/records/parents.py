"""What a run was built on: the runs and drawn pairs it took something from, each with what it cost to make.

run.json carries them as a list, so that a run's costs can be told with them and apart, wherever they lie by then. A
parent's own parents are in the list too; what two of them share stands there once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo.records.costs import costs
from dpo.records.read import json_file
from dpo.records.run import read_record

Row = dict[str, Any]
SUMS = (
    "seconds", "saved_seconds", "cpu_hours", "saved_cpu_hours", "flops", "saved_flops", "gpu_hours", "money",
    "watt_hours",
)  # fmt: skip
"""Costs that add up; of memory the most counts."""


def parents_by(what: str, run: Path) -> list[Row]:
    """The run in `run`, which gave `what` (adapter, reward), and what that run was built on.

    Raises ConfigError and CheckpointError as `read_record` does.
    """
    record = read_record(run)
    own = {"what": what, "id": record.get("id"), "folder": str(run), "cost": costs(json_file(run / "ledger.json"))}
    return [own, *carried(record)]


def carried(record: Mapping[str, Any]) -> list[Row]:
    """The parents that run.json lists; those of a damaged list are none."""
    found = record.get("parents")
    return [row for row in found if isinstance(row, dict) and "id" in row] if isinstance(found, list) else []


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Each parent once, in their order; one without an id by its folder."""
    found: dict[Any, Row] = {}
    for row in rows:
        found.setdefault(row.get("id") or row.get("folder"), row)
    return list(found.values())


def with_parents(own: Mapping[str, Any], parents: Iterable[Row]) -> Row:
    """Costs of a run and of all it was built on; None where one of them does not know."""
    every = [own, *(row.get("cost") or {} for row in parents)]
    found = dict(own)
    for key in SUMS:
        values = [cost.get(key) for cost in every]
        known = [value for value in values if value is not None]
        found[key] = sum(known) if len(known) == len(every) else None
    peaks = [cost["peak_memory_mb"] for cost in every if cost.get("peak_memory_mb") is not None]
    found["peak_memory_mb"] = max(peaks, default=None)
    return found
