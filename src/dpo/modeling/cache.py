"""Where converted weights, tokens and reference log-probs are kept between runs. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder(kind: str) -> Path:
    """Return $DPO_CACHE/kind (default: the user's cache folder), made when missing."""
    root = os.environ.get("DPO_CACHE")
    folder = (Path(root).expanduser() if root else Path(platformdirs.user_cache_dir("dpo-train"))) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
