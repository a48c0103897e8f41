"""What a run cost per phase over all attempts: wall, CPU and device time, memory, energy, pairs, tokens, money."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.records.energy import EnergyMeter, card_counters, processor_counters
from dpo.records.files import write_sealed
from dpo.records.read import json_file

TICK_SECONDS = 5.0


class Ledger:
    """Accumulates phases into ledger.json; a continued run adds to what is there.

    `device_peak_mb` reads the peak of the accelerator's memory; without one the process's resident peak counts.
    `energy` reads the counters of this machine's processors and of the cards in use: what else runs there is in it.
    While a phase is open, the file is written every few seconds, so that a kill at any moment loses no more than that.
    """

    def __init__(self, folder: Path, hourly_rate: float, say: Callable[[str], None] = print) -> None:
        self.path = folder / "ledger.json"
        self.hourly_rate = hourly_rate
        self.devices = 0
        self.device_peak_mb: Callable[[], float] | None = None
        self.energy = EnergyMeter(processor_counters())
        # Whose costs these are: a copy of another run's file is found by it.
        self.run = json_file(folder / "run.json").get("id")
        self.phases = _phases(self.path, self.run, say)
        self._open: list[tuple[str, float]] = []
        self._cpu = _cpu_seconds()
        self._lock = threading.RLock()

    def count_energy_of(self, cards: Iterable[str]) -> None:
        """Add the counters of these cards (UUIDs) to those of the processors."""
        self.energy = EnergyMeter({**processor_counters(), **card_counters(cards)})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`; an inner phase's time is not charged to the outer one."""
        self.flush()
        with self._lock:
            self._open.append((name, time.monotonic()))
        try:
            with self._ticking() if len(self._open) == 1 else contextlib.nullcontext():
                yield
        finally:
            self.flush()
            with self._lock:
                self._open.pop()
                if self._open:
                    self._open[-1] = (self._open[-1][0], time.monotonic())

    @contextlib.contextmanager
    def _ticking(self) -> Iterator[None]:
        """Flush every TICK_SECONDS while the block runs, from a thread of its own."""
        stop = threading.Event()

        def tick() -> None:
            while not stop.wait(TICK_SECONDS):
                # A full disk is for those to report who write what matters.
                with contextlib.suppress(OSError):
                    self.flush()

        thread = threading.Thread(target=tick, name="ledger", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def count(self, phase: str, **amounts: float) -> None:
        """Add pairs, tokens, hits or misses to a phase."""
        with self._lock:
            entry = self.phases.setdefault(phase, {"seconds": 0.0})
            for key, amount in amounts.items():
                entry[key] = entry.get(key, 0) + amount

    def set(self, phase: str, **amounts: float) -> None:
        """Put amounts that are known as a whole to a phase, over what an earlier attempt put there."""
        with self._lock:
            self.phases.setdefault(phase, {"seconds": 0.0}).update(amounts)

    def flush(self) -> None:
        """Charge what has passed so far and write the file."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        joules = self.energy.take()
        before, self._cpu = self._cpu, _cpu_seconds()
        if self._open:
            name, since = self._open[-1]
            now = time.monotonic()
            self.count(name, seconds=now - since, cpu_seconds=self._cpu - before)
            entry = self.phases[name]
            entry["gpu_seconds"] = entry.get("gpu_seconds", 0.0) + (now - since) * self.devices
            entry["peak_memory_mb"] = max(entry.get("peak_memory_mb", 0.0), self._peak_mb())
            if joules is not None:
                self.count(name, energy_joules=joules)
            self._open[-1] = (name, now)
        write_sealed(self.path, self.summary())

    def summary(self) -> dict[str, Any]:
        """The content of ledger.json; cost = hours x hourly_rate x devices (a CPU counts as one)."""
        seconds = sum(phase["seconds"] for phase in self.phases.values())
        return {
            "run": self.run,
            "phases": self.phases,
            "seconds": seconds,
            "gpu_seconds": sum(phase.get("gpu_seconds", 0.0) for phase in self.phases.values()),
            "energy_joules": sum(known) if (known := self._known("energy_joules")) else None,
            "hourly_rate": self.hourly_rate,
            "cost": seconds / 3600 * self.hourly_rate * max(1, self.devices),
        }

    def _known(self, key: str) -> list[float]:
        return [phase[key] for phase in self.phases.values() if key in phase]

    def _peak_mb(self) -> float:
        if self.device_peak_mb is not None:
            return self.device_peak_mb()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _cpu_seconds() -> float:
    """Of all threads of this process and of the children it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _phases(path: Path, run: str | None, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """What earlier attempts cost. A damaged file stops no run: it is said, and counting starts anew."""
    try:
        whole = json_file(path)
        if not whole:
            return {}
        if whole.get("run") != run:
            say(f"{path}: another run's; what earlier attempts cost is not in it any more")
            return {}
        found = whole["phases"]
        phases = {str(name): {str(k): _amount(v) for k, v in phase.items()} for name, phase in found.items()}
        if all("seconds" in phase for phase in phases.values()):
            return phases
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    say(f"{path}: not readable; what earlier attempts cost is not in it any more")
    return {}


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(value)
    return value
