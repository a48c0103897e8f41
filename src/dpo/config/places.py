"""Paths of a config made absolute: a run directory is read from other folders than the one it was begun in."""

from __future__ import annotations

import os
from pathlib import Path

from dpo.config.schema import Config

PLACES = {"model": ("path", "adapter"), "dataset": ("path", "dev_path", "test_path"), "dpo": ("reward",)}


def make_absolute(config: Config) -> None:
    """Replace each path that leads somewhere here, in place. Hub ids, and paths that lead nowhere, stay as typed."""
    for group, names in PLACES.items():
        node = getattr(config, group)
        for name in names:
            value = getattr(node, name, None)
            if value is not None and Path(value).expanduser().exists():
                setattr(node, name, os.path.abspath(Path(value).expanduser()))
