"""In which settings compared runs differ, and what that means for comparing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dpo.config.identity import Role, flat, role
from dpo.records.read import DASH

Row = dict[str, Any]
BETA = "dpo.beta"
BETAS = (
    "The runs have different beta: margins are beta times nats and calibration follows them, so these cannot be "
    "compared as they stand. Accuracies, log-ratios, judges and KL can."
)


def what_differs(configs: Sequence[Row]) -> list[Row]:
    """[{key, values}] of each key that decides what is computed and is not the same in all configs, a value a run."""
    rows = [{key: value for key, value in flat(config).items() if _counts(key)} for config in configs]
    keys = sorted({key for row in rows for key in row})
    found = [{"key": key, "values": [_word(row, key) for row in rows]} for key in keys]
    return [one for one in found if len(set(one["values"])) > 1]


def caution(differs: Sequence[Row]) -> str | None:
    """What a difference forbids to compare."""
    return BETAS if any(one["key"] == BETA for one in differs) else None


def _counts(key: str) -> bool:
    return key.partition(".")[0] != "options" and role(key) is Role.what


def _word(settings: Row, key: str) -> str:
    value = settings.get(key, DASH)
    return value if isinstance(value, str) else json.dumps(value)
