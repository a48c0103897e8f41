"""Where no card can be faked: what the rule of `engine.memory` says from the model's sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpo.config.schema import Config
from dpo.engine.memory import bytes_per_token
from dpo.planning.measure import model_config


@dataclass(frozen=True)
class Rule:
    """A forecast of less worth; `facts` for programs."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def by_rule(config: Config, why: str) -> Rule:
    """Bytes a token, in 16 bits, and of the longest pair there can be."""
    shape = model_config(config.model.path).get_text_config()
    engine, longest = config.hardware.engine.value, 2 * config.dataset.max_length
    each = {
        name: bytes_per_token(shape, 2, engine=engine, checkpointing=on) * longest
        for name, on in (("without checkpointing", False), ("with it", True))
    }
    said = ", ".join(f"{size / 2**30:.2f} GiB {name}" for name, size in each.items())
    text = f"{config.model.path}, by rule: the longest pair of {longest} tokens takes {said}, beside the model\n  {why}"
    return Rule(text, {"model": config.model.path, "verdict": "by rule", "why": why, "bytes": each})
