"""What to change in a command whose step does not fit, the least change of the run first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dpo.config.hardware import Checkpointing
from dpo.config.schema import Config
from dpo.planning.measure import Measured


def remedies(config: Config, found: Measured) -> Iterator[tuple[str, Config]]:
    """(words to add, the config with them), by themselves and not on top of each other; the first two change no step
    but its rounding."""
    hardware, dataset = config.hardware, config.dataset
    if found.longest < found.budget:
        budget = replace(hardware, token_budget=found.longest)
        yield f"hardware.token_budget={found.longest}", replace(config, hardware=budget)
    if not found.activation_checkpointing:
        asked = replace(hardware, activation_checkpointing=Checkpointing.on)
        yield "hardware.activation_checkpointing=on", replace(config, hardware=asked)
    half = dataset.max_length // 2
    yield f"dataset.max_length={half}", replace(config, dataset=replace(dataset, max_length=half))
