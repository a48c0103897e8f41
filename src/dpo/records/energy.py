"""Energy counters of this machine, where it lets them be read: NVIDIA's per card and the processor's (RAPL)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]


def processor_counters(root: Path = POWERCAP) -> dict[str, Counter]:
    """Name -> joules so far, of each processor package; many systems allow only root to read them.

    Counters of parts of a package (`intel-rapl:0:1`) are left out: the package's holds them. One that wraps around
    within a phase is noticed by whoever takes the difference.
    """
    found: dict[str, Counter] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        path = folder / "energy_uj"
        if folder.name.count(":") == 1 and _readable(path):
            found[folder.name] = lambda path=path: int(path.read_text()) / 1e6  # type: ignore[misc]
    return found


def card_counters(uuids: Iterable[str]) -> dict[str, Counter]:
    """UUID -> joules so far of the given cards (NVML counts millijoules).

    None of a card without the extra `nvidia`, a driver or a counter.
    """
    found: dict[str, Counter] = {}
    for uuid in uuids:
        with contextlib.suppress(Exception):
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            found[uuid] = _card_counter(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return found


def _card_counter(millijoules: Callable[[Any], int], handle: Any) -> Counter:
    return lambda: millijoules(handle) / 1e3


def _readable(path: Path) -> bool:
    try:
        return int(path.read_text()) >= 0
    except (OSError, ValueError):
        return False


class EnergyMeter:
    """Joules between calls of `take`, over all counters; None when there is none."""

    def __init__(self, counters: dict[str, Counter]) -> None:
        self._counters = counters
        self._last = self._read()

    def take(self) -> float | None:
        """Joules since the last call. A counter that went backwards (wrapped around) or vanished adds nothing."""
        now = self._read()
        steps = [now[name] - before for name, before in self._last.items() if name in now]
        self._last = now
        return sum(step for step in steps if step > 0) if self._counters else None

    def _read(self) -> dict[str, float]:
        found = {}
        for name, counter in self._counters.items():
            with contextlib.suppress(Exception):
                found[name] = counter()
        return found
