"""The date of a run, which a chat template may print."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

DATE = "DPO_SWEEP_DATE"
"""Set in a sweep's jobs: the day that began it, which is the date of each of its runs."""


def date_of_begin(record: Mapping[str, Any]) -> str:
    """The day a run began, or the sweep that it is a job of: what a chat template that prints the date prints."""
    if os.environ.get("DPO_SWEEP") and (date := os.environ.get(DATE)):
        return date
    return datetime.fromtimestamp(record["created"], UTC).date().isoformat()
