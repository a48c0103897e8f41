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
class Tracked(Tracking):
    """A tracker. `group` is what runs are joined by; null: the sweep, if the run is part of one."""

    group: str | None = None


@dataclass
class Wandb(Tracked):
    """Weights & Biases; never needs an account."""

    project: str = MISSING
    entity: str | None = None
    adapter: bool = False
    mode: WandbMode = MISSING


@dataclass
class Trackio(Tracked):
    """trackio, on this machine."""

    project: str = MISSING
    adapter: bool = False


@dataclass
class Tensorboard(Tracked):
    """TensorBoard event files in the run directory."""
