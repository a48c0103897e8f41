"""Room on disk and in memory, and the driver of a GPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import psutil

from dpo.caches.folder import cache_folder
from dpo.config.roots import outputs_root
from dpo.diagnosis.finding import Finding

# The default job: converted weights and tokens in the cache, a few adapters in outputs; about 2 GB of memory.
DISK_GB = 2.0
MEMORY_GB = 2.0
# A driver that is stuck answers nobody.
DRIVER_SECONDS = 4.0
AMD = Path("/sys/module/amdgpu/version")


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


def driver() -> list[Finding]:
    """The kernel driver of an NVIDIA or AMD GPU, asked without torch: it may be there and torch not built for it."""
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=driver_version,name", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            line = f"nvidia-smi does not answer within {DRIVER_SECONDS:.0f} s"
            return [Finding("driver", "warn", line, "the driver is stuck: look at dmesg, restart the machine")]
        rows = done.stdout.strip().splitlines()
        if done.returncode == 0 and rows:
            number, _, name = rows[0].partition(", ")
            return [Finding("driver", "ok", f"NVIDIA {number}, {len(rows)} GPU{'s' * (len(rows) > 1)} ({name})")]
        said = (rows or done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        return [Finding("driver", "warn", f"nvidia-smi: {said}"[:200], "reinstall the NVIDIA driver, then restart")]
    if found := _nvml() or (f"amdgpu {AMD.read_text().strip()}" if AMD.is_file() else None):
        return [Finding("driver", "ok", found)]
    line = "none: no nvidia-smi, no NVML, no amdgpu module"
    return [Finding("driver", "warn", line, "for large models: a GPU and its driver; the CPU needs none")]


def _nvml() -> str | None:
    """The driver's version from NVML (extra `nvidia`), which a container may have without nvidia-smi."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        return f"NVIDIA {pynvml.nvmlSystemGetDriverVersion()}"
    except pynvml.NVMLError:
        return None
