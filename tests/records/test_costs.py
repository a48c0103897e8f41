"""A run's cost is what making it took, whoever computed its reference first; measuring it stands apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo.records.costs import costs
from dpo.records.parents import SUMS, carried, distinct, parents_by, with_parents

PHASES: dict[str, Any] = {
    "load": {"seconds": 20.0, "cpu_seconds": 15.0, "gpu_seconds": 40.0, "peak_memory_mb": 900.0},
    "reference": {
        "seconds": 10.0,
        "cpu_seconds": 4.0,
        "gpu_seconds": 20.0,
        "pair_seconds": 70.0,
        "pair_cpu_seconds": 54.0,
        "flops": 1e9,
        "pair_flops": 7e9,
        "hits": 6,
        "misses": 1,
    },
    "train": {"seconds": 100.0, "cpu_seconds": 180.0, "flops": 90e9, "gpu_seconds": 200.0, "peak_memory_mb": 2000.0},
    "evaluate": {
        "seconds": 870.0,
        "flops": 500e9,
        "cpu_seconds": 900.0,
        "gpu_seconds": 870.0,
        "peak_memory_mb": 6600.0,
    },
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
    assert found["cpu_hours"] * 3600 == pytest.approx(15 + 4 + 180 + 50)
    assert found["saved_cpu_hours"] * 3600 == pytest.approx(50)
    assert found["flops"] == 1e9 + 90e9 + 6e9
    assert found["saved_flops"] == 6e9
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
    assert found["flops"] is None


def _cost(**values: float) -> dict[str, Any]:
    return {**dict.fromkeys(SUMS, 1.0), "peak_memory_mb": 5.0, "money": None, **values}


def test_what_a_run_was_built_on_is_added_once(tmp_path: Path) -> None:
    for name, flops in (("first", 7e9), ("second", 20e9)):
        (tmp_path / name).mkdir()
        phases = {"train": {"seconds": 1.0, "flops": flops, "cpu_seconds": 2.0, "peak_memory_mb": 50.0}}
        (tmp_path / name / "ledger.json").write_text(json.dumps({"phases": phases, "seconds": 1.0}))
    first = {"status": "complete", "id": "1"}
    (tmp_path / "first" / "run.json").write_text(json.dumps(first))
    second = {"status": "complete", "id": "2", "parents": parents_by("adapter", tmp_path / "first")}
    (tmp_path / "second" / "run.json").write_text(json.dumps(second))
    found = distinct([*parents_by("adapter", tmp_path / "second"), *parents_by("reward", tmp_path / "first")])
    assert [(row["what"], row["id"]) for row in found] == [("adapter", "2"), ("adapter", "1")]
    whole = with_parents(_cost(flops=1e9), found)
    assert whole["flops"] == 28e9
    assert whole["cpu_hours"] == pytest.approx(1 + 4 / 3600)
    assert whole["peak_memory_mb"] == 50
    assert whole["money"] is None
    (tmp_path / "first" / "ledger.json").unlink()
    # What a run remembers of a parent stays when the parent's folder goes.
    assert with_parents(_cost(flops=1e9), carried(second))["flops"] == 8e9
    unknown = parents_by("adapter", tmp_path / "first")
    assert with_parents(_cost(flops=1e9), unknown)["flops"] is None
    assert carried({"parents": "damaged"}) == []
