"""Energy of phases, from counters as the kernel lays them out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo.records.energy import EnergyMeter, card_counters, processor_counters
from dpo.records.ledger import Ledger


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    for name, microjoules in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 4_000_000)):
        (tmp_path / "powercap" / name).mkdir(parents=True)
        (tmp_path / "powercap" / name / "energy_uj").write_text(f"{microjoules}\n")
    return tmp_path / "powercap"


def spend(powercap: Path, name: str, joules: float) -> None:
    path = powercap / name / "energy_uj"
    path.write_text(str(int(path.read_text()) + int(joules * 1e6)))


def test_packages_count_and_their_parts_do_not(powercap: Path) -> None:
    meter = EnergyMeter(processor_counters(powercap))
    spend(powercap, "intel-rapl:0", 3)
    spend(powercap, "intel-rapl:1", 2)
    spend(powercap, "intel-rapl:0:0", 3)
    assert meter.take() == pytest.approx(5)
    assert meter.take() == 0


def test_a_counter_that_wraps_or_vanishes_adds_nothing(powercap: Path) -> None:
    meter = EnergyMeter(processor_counters(powercap))
    (powercap / "intel-rapl:0" / "energy_uj").write_text("10")
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.take() == 0


def test_phases_are_charged_and_no_counter_is_not_zero(powercap: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0.0)
    ledger.energy = EnergyMeter(processor_counters(powercap))
    spend(powercap, "intel-rapl:0", 100)  # before any phase
    with ledger.phase("train"):
        spend(powercap, "intel-rapl:0", 7)
        with ledger.phase("evaluate"):
            spend(powercap, "intel-rapl:1", 4)
    written = json.loads((tmp_path / "ledger.json").read_text())
    assert written["phases"]["train"]["energy_joules"] == pytest.approx(7)
    assert written["phases"]["evaluate"]["energy_joules"] == pytest.approx(4)
    assert written["energy_joules"] == pytest.approx(11)
    silent = Ledger(tmp_path / "other", 0.0)
    silent.energy = EnergyMeter({})
    (tmp_path / "other").mkdir()
    with silent.phase("train"):
        pass
    assert silent.summary()["energy_joules"] is None


def test_a_phase_is_charged_the_processor_and_not_the_waiting(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0.0)
    with ledger.phase("train"):
        began = time.process_time()
        while time.process_time() - began < 0.2:
            pass
        with ledger.phase("evaluate"):
            time.sleep(0.3)
    phases = json.loads((tmp_path / "ledger.json").read_text())["phases"]
    assert phases["train"]["cpu_seconds"] >= 0.18
    assert phases["evaluate"]["seconds"] >= 0.3
    assert phases["evaluate"]["cpu_seconds"] < phases["train"]["cpu_seconds"]


def test_a_killed_attempt_stays_charged_and_the_next_one_adds_to_it(tmp_path: Path) -> None:
    script = (
        "import sys, time, dpo.records.ledger as ledger; from pathlib import Path; ledger.TICK_SECONDS = 0.05\n"
        "with ledger.Ledger(Path(sys.argv[1]), 36.0).phase('train'): time.sleep(600)"
    )
    spent = 0.0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as process:
            deadline = time.monotonic() + 60
            while (now := _seconds(tmp_path)) <= spent + 0.1:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.kill()
        assert now > spent + 0.1
        spent = _seconds(tmp_path)
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert found["phases"]["train"]["seconds"] == found["seconds"] == spent
    assert found["cost"] == pytest.approx(spent / 100)


def _seconds(folder: Path) -> float:
    """Charged so far to the phase train."""
    path = folder / "ledger.json"
    phases = json.loads(path.read_text())["phases"] if path.is_file() else {}
    return float(phases.get("train", {}).get("seconds", 0.0))


def test_an_unknown_card_has_no_counter() -> None:
    assert card_counters(["GPU-00000000-0000-0000-0000-000000000000"]) == {}
