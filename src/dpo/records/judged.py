"""Which judges fit a run's rows, so that what they found may be its headline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
RULES, SYNTHETIC = "rules", "synthetic"
UNFIT = "it states what the synthetic rows want; dataset.judges=[rules] says that these want it too."
DECIDE = ("llm", "reward_model", "human")
"""Judges that can decide about any rows."""


def fitting(judges: Iterable[str], *configs: Row) -> list[str]:
    """Those of `judges`, in their order, that fit the rows of every run with one of these config.yaml.

    The rule of the shipped rows says what those want, and nothing about others, unless `dataset.judges` names it.
    """
    datasets = [config.get("dataset") or {} for config in configs]
    ruled = all(one.get("source") == SYNTHETIC or RULES in (one.get("judges") or ()) for one in datasets)
    return [name for name in judges if name != RULES or ruled]
