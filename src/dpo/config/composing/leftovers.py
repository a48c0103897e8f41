"""What a launcher leaves in the environment, and whether one really stands around this process. Imports no torch."""

from __future__ import annotations

import os

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PREFIXES = ("ACCELERATE_", "FSDP_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")


def around() -> bool:
    """Whether a launcher (torchrun, accelerate launch, ours) started this process: it says where the ranks meet."""
    alone = os.environ.get("WORLD_SIZE") == "1"
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE")) and (alone or "MASTER_ADDR" in os.environ)


def drop_leftovers() -> list[str]:
    """Without a launcher around, take away what another one left: accelerate would wait for ranks that never come."""
    if around():
        return []
    found = [name for name in os.environ if name in RANK_VARIABLES or name.startswith(PREFIXES)]
    for name in found:
        del os.environ[name]
    return sorted(found)
