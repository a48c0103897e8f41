"""Room on disk and in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from dpo.diagnosis.finding import Finding
from dpo.modeling.cache import cache_folder
from dpo.records.run import outputs_root

# The default job: converted weights and tokens in the cache, a few adapters in outputs; about 2 GB of memory.
DISK_GB = 2.0
MEMORY_GB = 2.0


def disk(needed: float = DISK_GB) -> list[Finding]:
    """Free space where runs and the cache land, in GB."""
    found = []
    for name, folder in (("outputs", outputs_root()), ("cache", cache_folder("models"))):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 1e9
        fix = f"free some room, or set {'DPO_OUTPUTS' if name == 'outputs' else 'DPO_CACHE'} to another disk"
        good = free >= needed
        line = f"{free:.1f} GB free for {name} at {Path(place)}"
        found.append(Finding("disk", "ok" if good else "fail", line, "" if good else fix))
    return found


def memory(needed: float = MEMORY_GB) -> list[Finding]:
    """Available memory, in GB."""
    free = psutil.virtual_memory().available / 1e9
    good = free >= needed
    fix = "" if good else f"the default job takes about {needed:g} GB; close other programs"
    return [Finding("memory", "ok" if good else "fail", f"{free:.1f} GB available", fix)]
