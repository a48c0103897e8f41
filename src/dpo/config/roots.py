"""The two folders that everything is written under, as the environment names them."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def outputs_root() -> Path:
    """Where runs land: $DPO_OUTPUTS, else outputs/ of the current folder."""
    return Path(os.environ.get("DPO_OUTPUTS") or "outputs").expanduser()


def cache_root() -> Path:
    """Where caches lie: $DPO_CACHE, else the user's cache folder."""
    root = os.environ.get("DPO_CACHE")
    return Path(root).expanduser() if root else Path(platformdirs.user_cache_dir("dpo-train"))
