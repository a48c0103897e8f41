"""The two folders that everything is written under, as the environment names them."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from dpo.errors import ConfigError


def outputs_root() -> Path:
    """Where runs land: $DPO_OUTPUTS, else outputs/ of the current folder."""
    return Path(os.environ.get("DPO_OUTPUTS") or "outputs").expanduser()


def cache_root() -> Path:
    """Where caches lie: $DPO_CACHE, else the user's cache folder."""
    root = os.environ.get("DPO_CACHE")
    return Path(root).expanduser() if root else Path(platformdirs.user_cache_dir("dpo-train"))


def check_roots() -> None:
    """Raise ConfigError for a root that is a file, a pipe or a device, which nothing can be written under."""
    for name, root in (("DPO_OUTPUTS", outputs_root()), ("DPO_CACHE", cache_root())):
        there = next(path for path in (root.absolute(), *root.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise ConfigError(f"{name}={root}: {there} is no folder; name one, or one that can be made")
