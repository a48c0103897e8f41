"""From operations to hours and money: at least, by the figures of cards; about, by what this machine has measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dpo.config.hardware import Device, Precision
from dpo.config.roots import outputs_root
from dpo.config.schema import Config
from dpo.planning.devices import of_size
from dpo.planning.measure import Measured
from dpo.records.overview import find_runs
from dpo.records.read import json_file

USUAL = (1.3, 3.0)
"""A step takes so many times what its products would at a card's published rate: 0.51 to 0.77 of it was reached at the
best; small models and short pairs reach less."""
RECENT = 50


@dataclass(frozen=True)
class Time:
    """Seconds of a whole run on `on`, from `least` to `most`; `basis` says by what; money at the hourly rate."""

    on: str
    least: float
    most: float
    basis: str
    money: float

    def __str__(self) -> str:
        cost = f", {self.money:.2f} in money" if self.money else ""
        return f"{hours(self.least)} to {hours(self.most)} on {self.on}{cost} ({self.basis})"


def hours(seconds: float) -> str:
    """For people."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def times_of(config: Config, found: Measured) -> list[Time]:
    """Of the cards with that memory; by this machine's earlier runs of the same model where it has any."""
    work, rate, known = found.amounts, config.hardware.hourly_rate, []
    if config.hardware.device is not Device.cpu and config.hardware.memory_gb is not None:
        single = config.hardware.precision is Precision.fp32
        for card in of_size(config.hardware.memory_gb):
            tflops = card.tflops_32 if single else card.tflops_16
            least = work.flops / (tflops * 1e12)
            spread = USUAL[0] * least, USUAL[1] * least
            known.append(Time(card.name, *spread, f"at least {hours(least)} by {card.source}", spread[1] / 3600 * rate))
    rates = rates_of(config, "cpu" if config.hardware.device is Device.cpu else "cuda")
    if rates:
        low, high = work.flops / rates[-1], work.flops / rates[0]
        basis = f"calibrated by {len(rates)} runs of this model on this machine"
        known.append(Time("this machine", low, high, basis, high / 3600 * rate))
    return known


def rates_of(config: Config, device: str) -> list[float]:
    """Operations a second of training this model on a `device` here, as ledgers of runs have them; slowest first."""
    return sorted(_rates(config, device))


def _rates(config: Config, device: str) -> Iterator[float]:
    root = outputs_root()
    for folder in (find_runs(root) if root.is_dir() else [])[:RECENT]:
        record, ledger = json_file(folder / "run.json"), json_file(folder / "ledger.json")
        phase = (ledger.get("phases") or {}).get("train") or {}
        built = record.get("built") or {}
        kind = (record.get("fingerprints") or {}).get("device")
        if built.get("model.path") != config.model.path or kind != device:
            continue
        if phase.get("flops") and phase.get("seconds"):
            yield phase["flops"] / phase["seconds"]
