"""Room for jobs on this machine: how many at once, and the GPU or the share of the cores each gets. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from dpo.caches.folder import cache_folder
from dpo.config.hardware import Device
from dpo.config.lora import FullTraining
from dpo.config.schema import Config
from dpo.modeling.host_memory import free_host_memory

PROCESS_BYTES = 1.5 * 2**30
"""What a training process takes besides its weights: libraries, activations of a micro-batch, the adapter's state."""
WEIGHT_COPIES = 2
"""16-bit weights on disk are computed with in 32 bits on most CPUs."""
FULL_COPIES = 8
"""With full fine-tuning: 32-bit weights, gradients and two moments."""


@dataclass
class Slots:
    """`gpus[i]` is the GPU of slot i; without GPUs a slot is `threads` of the cores."""

    count: int
    threads: int
    gpus: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = list(range(self.count))

    def take(self, gpus: int | None) -> list[int] | None:
        """Slots for a job, as many as the GPUs it needs (None: all there are); None when they are not free."""
        wanted = min(self.count if gpus is None else gpus, self.count) if self.gpus else 1
        if len(self.free) < wanted:
            return None
        taken, self.free = self.free[:wanted], self.free[wanted:]
        return taken

    def give(self, taken: list[int]) -> None:
        """Return a job's slots."""
        self.free = sorted([*self.free, *taken])

    def environment(self, taken: list[int]) -> dict[str, str]:
        """What pins a job to its slots."""
        threads = str(self.threads * len(taken))
        pinned = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.gpus:
            pinned["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(self.gpus[i] for i in taken))
        return pinned

    def __str__(self) -> str:
        if self.gpus:
            return f"{self.count} at a time on {len(set(self.gpus))} GPUs"
        return f"{self.count} at a time, {self.threads} thread{'s' if self.threads > 1 else ''} each"


def find_slots(asked: int | None, jobs: list[Config]) -> Slots:
    """The slots of this machine: `asked`, else one a GPU, else as many as its cores and its memory hold.

    OMP_NUM_THREADS, when set, is how many cores the sweep may use in all.
    """
    cores = int(os.environ.get("OMP_NUM_THREADS") or _cores())
    gpus = [] if all(job.hardware.device is Device.cpu for job in jobs) else visible_gpus()
    if gpus:
        count = asked or len(gpus)
        # More slots than GPUs share them in turn; a job that takes several GPUs gets neighbours.
        return Slots(count, max(1, cores // count), [gpus[i % len(gpus)] for i in range(count)])
    count = asked or max(1, min(len(jobs), cores, *(_fit(job) for job in jobs)))
    return Slots(count, max(1, cores // count))


def visible_gpus() -> list[str]:
    """Ids of the GPUs a job could be pinned to, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fit(job: Config) -> int:
    """How many jobs like this one the memory holds; one where its weights are not on this machine yet."""
    weights = _weights_on_disk(job.model.path)
    if weights is None:
        return 1
    copies = FULL_COPIES if isinstance(job.lora, FullTraining) else WEIGHT_COPIES
    return int(free_host_memory() // (PROCESS_BYTES + copies * weights))


def _weights_on_disk(path: str) -> int | None:
    if path.startswith("embedded:"):
        folders = list(cache_folder("models").glob(f"{path.removeprefix('embedded:')}-*"))
    else:
        folders = [Path(path).expanduser()]
    sizes = [file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")]
    return sum(sizes) if sizes else None
