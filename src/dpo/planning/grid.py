"""A sweep's jobs: measured once where they differ in nothing that memory or work depends on; one reference pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpo.config.parse import plain
from dpo.config.schema import Config
from dpo.planning.lengths import Lengths, lengths_of
from dpo.planning.measure import Measured, measure

FREE = ("beta", "learning_rate", "weight_decay", "warmup_ratio", "label_smoothing", "max_grad_norm")
"""Keys of dpo that change numbers alone."""


@dataclass(frozen=True)
class Job:
    """One of a grid. `shares`: its reference log-probs are computed by a job before it."""

    words: str
    config: Config
    found: Measured
    shares: bool


def measured(jobs: Sequence[tuple[Config, Sequence[str]]]) -> list[Job]:
    """Every job with what it takes; in the sum, the reference pass of the same base on the same data counts once."""
    known: dict[str, Measured] = {}
    read: dict[str, Lengths] = {}
    seen: set[str] = set()
    made = []
    for config, words in jobs:
        data = _key(config, ("model", "dataset"))
        if data not in read:
            read[data] = lengths_of(config)
        key = _key(config, ("model", "dataset", "lora", "hardware", "dpo"))
        if key not in known:
            known[key] = measure(config, read[data])
        base = data + _key(replace(config, lora=replace(config.lora)), ("hardware",)) + str(config.lora.quantization)
        found, shares = known[key], base in seen
        seen.add(base)
        if shares:
            found = replace(found, amounts=replace(found.amounts, reference_flops=0))
        made.append(Job(" ".join(words), config, found, shares))
    return made


def _key(config: Config, groups: Sequence[str]) -> str:
    facts: dict[str, Any] = {group: plain(getattr(config, group)) for group in groups}
    if "dpo" in facts:
        facts["dpo"] = {name: value for name, value in facts["dpo"].items() if name not in FREE}
        facts["seed"] = config.seed
    return json.dumps(facts, sort_keys=True, default=str)
