"""A run's cost is what making it took, whoever computed its reference first; measuring it stands apart."""

from __future__ import annotations

from typing import Any

import pytest

from dpo.records.costs import costs

PHASES: dict[str, Any] = {
    "load": {"seconds": 20.0, "cpu_seconds": 15.0, "gpu_seconds": 40.0, "peak_memory_mb": 900.0},
    "reference": {
        "seconds": 10.0,
        "cpu_seconds": 4.0,
        "gpu_seconds": 20.0,
        "pair_seconds": 70.0,
        "hits": 6,
        "misses": 1,
    },
    "train": {"seconds": 100.0, "cpu_seconds": 180.0, "gpu_seconds": 200.0, "peak_memory_mb": 2000.0},
    "evaluate": {"seconds": 870.0, "cpu_seconds": 900.0, "gpu_seconds": 870.0, "peak_memory_mb": 6600.0},
}


def _ledger(**changes: Any) -> dict[str, Any]:
    return {
        "phases": PHASES,
        "seconds": 1000.0,
        "gpu_seconds": 1130.0,
        "energy_joules": None,
        "hourly_rate": 3.6,
        "cost": 1000 / 3600 * 3.6 * 2,  # two devices
        **changes,
    }


def test_by_hand() -> None:
    found = costs(_ledger())
    assert found["saved_seconds"] == 60
    assert found["seconds"] == 20 + 10 + 100 + 60
    assert found["evaluation_seconds"] == 870
    assert found["cpu_hours"] * 3600 == pytest.approx(15 + 4 + 180)
    assert found["gpu_hours"] * 3600 == pytest.approx(40 + 20 + 200 + 60 * 2)
    assert found["money"] == pytest.approx(190 / 3600 * 3.6 * 2)
    assert found["peak_memory_mb"] == 2000
    assert found["watt_hours"] is None


def test_a_reference_computed_by_the_run_itself_is_charged_once() -> None:
    own = {**PHASES, "reference": {"seconds": 71.0, "pair_seconds": 70.0}}
    assert costs(_ledger(phases=own))["seconds"] == 20 + 71 + 100
    assert costs(_ledger(phases=own))["saved_seconds"] == 0


@pytest.mark.parametrize("ledger", [{}, {"phases": None}, {"phases": {}, "seconds": 0}])
def test_what_a_ledger_does_not_know_is_none(ledger: dict[str, Any]) -> None:
    found = costs(ledger)
    assert found["seconds"] is None
    assert found["money"] is None
    assert found["cpu_hours"] is None
