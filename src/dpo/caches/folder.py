"""Where converted weights, tokens and reference log-probs are kept between runs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dpo.config.roots import cache_root
from dpo.errors import CheckpointError, is_disk_full


def cache_folder(kind: str) -> Path:
    """The cache's folder `kind`, made when missing; raises CheckpointError when it cannot be."""
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        why = (error.strerror or type(error).__name__).lower()
        raise CheckpointError(f"{folder}: {why}\nset DPO_CACHE to a folder that can be written") from None
    return folder
