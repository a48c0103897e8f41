"""Hydra's side of our launchers. Hydra makes launchers only of classes in packages of this name space."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher


class CollectJobs(BasicLauncher):
    """Composes each job of a multirun and hands it over; where and when it runs is decided outside Hydra."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
