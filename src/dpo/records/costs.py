"""What a run cost to train, what measuring it cost, and what its cache saved: read from ledger.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVALUATE = "evaluate"
"""The phase that measures a run; all others make it."""


def costs(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """Training's costs over all attempts; None where the ledger does not know.

    A reference log-prob that another run computed is charged with what computing it took, so that of two runs the
    second does not look cheaper for coming second.

    Returns:
        seconds, gpu_hours, cpu_hours, flops, money, watt_hours, peak_memory_mb of training, hourly_rate;
        saved_seconds, saved_cpu_hours, saved_flops: the part of each that the reference cache spared this run;
        evaluation_seconds: what measuring it took, not in the others.
    """
    phases = ledger.get("phases") or {}
    trained = {name: phase for name, phase in phases.items() if name != EVALUATE}
    reference = phases.get("reference") or {}
    saved, saved_cpu, saved_flops = (
        max(0.0, (reference.get(f"pair_{key}") or 0.0) - (reference.get(key) or 0.0))
        for key in ("seconds", "cpu_seconds", "flops")
    )
    devices = _devices(ledger)
    seconds = _sum(trained, "seconds")
    if seconds is not None:
        seconds += saved
    gpu = _sum(trained, "gpu_seconds")
    joules = _sum(trained, "energy_joules") if ledger.get("energy_joules") is not None else None
    rate = ledger.get("hourly_rate")
    cpu, flops = _sum(trained, "cpu_seconds"), _sum(trained, "flops")
    return {
        "seconds": seconds,
        "saved_seconds": saved,
        "flops": None if flops is None else flops + saved_flops,
        "saved_flops": saved_flops,
        "saved_cpu_hours": saved_cpu / 3600,
        "evaluation_seconds": (phases.get(EVALUATE) or {}).get("seconds"),
        "gpu_hours": None if gpu is None else (gpu + (saved * devices if gpu else 0.0)) / 3600,
        "cpu_hours": None if cpu is None else (cpu + saved_cpu) / 3600,
        "peak_memory_mb": max((phase.get("peak_memory_mb", 0) for phase in trained.values()), default=None),
        "hourly_rate": rate,
        "money": None if seconds is None or rate is None else seconds / 3600 * rate * devices,
        "watt_hours": None if joules is None else joules / 3600,
    }


def _sum(phases: Mapping[str, Mapping[str, float]], key: str) -> float | None:
    known = [phase[key] for phase in phases.values() if key in phase]
    return sum(known) if known else None


def _devices(ledger: Mapping[str, Any]) -> float:
    """How many devices an hour was charged for; a CPU counts as one."""
    seconds, rate = float(ledger.get("seconds") or 0), float(ledger.get("hourly_rate") or 0)
    if seconds and rate:
        return float(ledger.get("cost") or 0) / (seconds / 3600 * rate)
    return max(1.0, float(ledger.get("gpu_seconds") or 0) / seconds) if seconds else 1.0
