"""The model group: which weights. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Model:
    """Which weights: a hub id, a folder with safetensors, or `embedded:NAME` for weights shipped in a package."""

    path: str = MISSING
    revision: str = MISSING
    chat_template: str | None = None
