"""Typed schema of `python -m dpo.dashboard`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Dashboard:
    """Which W&B project the workspace shows, and where its JSON goes."""

    project: str = MISSING
    entity: str | None = MISSING
    title: str = MISSING
    group: str | None = MISSING
    out: str | None = MISSING
