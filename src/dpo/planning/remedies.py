"""What to change in a command whose step does not fit, the least change of the run first; and which card would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dpo.config.hardware import Checkpointing
from dpo.config.schema import Config
from dpo.engine.usable import GIGABYTE
from dpo.planning.card import CONTEXT
from dpo.planning.devices import of_size, sizes
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


def smallest_card(found: Measured) -> str:
    """The smallest of the table that takes the longest pair, with checkpointing where that is open; empty for a CPU."""
    if not found.memory:
        return ""
    for size in sizes():
        if found.at_one_pair <= size * GIGABYTE - CONTEXT:
            names = ", ".join(card.name for card in of_size(size))
            return f"the smallest card that takes its longest pair has {size:g} GB ({names})"
    return f"no card of the table takes its longest pair: {found.at_one_pair / 2**30:.1f} GiB"
