"""Figures of the steps since the last logged one, as sums from which their means come."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

Sums = dict[str, list[float]]
"""Name -> [sum of value times weight, sum of weights]."""


class Window:
    """Weighted sums by name. A step that is taken back takes its figures back with it: `snapshot`, then `restore`."""

    def __init__(self, sums: Mapping[str, list[float]] | None = None) -> None:
        self.sums: Sums = deepcopy(dict(sums or {}))

    def add(self, figures: Mapping[str, float], weight: float) -> None:
        """Count each figure `weight` times."""
        for name, value in figures.items():
            entry = self.sums.setdefault(name, [0.0, 0.0])
            entry[0] += value * weight
            entry[1] += weight

    def snapshot(self) -> Sums:
        """The sums as they stand, which nothing added later changes."""
        return deepcopy(self.sums)

    def restore(self, sums: Mapping[str, list[float]]) -> None:
        """Go back to `sums`, which stay as they are: they may be gone back to again."""
        self.sums = deepcopy(dict(sums))

    def drain(self) -> Sums:
        """The sums, leaving none behind."""
        sums, self.sums = self.sums, {}
        return sums
