"""The tracking group: where metrics go besides the run directory. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class WandbMode(Enum):
    """auto: online when a key is present and the server answers within seconds, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class Tracking:
    """Where metrics go besides the run directory."""

    backend: str = MISSING


@dataclass
class Wandb(Tracking):
    """Weights & Biases; never needs an account."""

    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    mode: WandbMode = MISSING
