"""Before a sweep's first job: what cannot fit its card however it is split is refused, not tried."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

from dpo.config.hardware import Device, Parallel
from dpo.config.schema import Config
from dpo.errors import OutOfMemory

PATIENCE = 900.0


def refuse_unfit(jobs: Sequence[tuple[Config, list[str]]]) -> None:
    """Raise OutOfMemory for the first job whose longest pair alone needs more than hardware.memory_gb.

    Looks at jobs for a card of a named size; in a process of its own, which sees none. What cannot be measured is left
    to the run.
    """
    named = [(config, words) for config, words in jobs if _is_named(config)]
    if not named:
        return
    print("looking whether each job fits its card", flush=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dpo.planning.refuse"],
            input=pickle.dumps(named),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )
        unfit: list[str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return
    if unfit:
        raise OutOfMemory("\n".join([*unfit[:2], "the same words to python -m dpo.plan say what would help"]))


def _is_named(config: Config) -> bool:
    hardware = config.hardware
    whole = hardware.parallel is Parallel.none
    return whole and hardware.device in (Device.auto, Device.cuda) and hardware.memory_gb is not None


def _unfit(jobs: Sequence[tuple[Config, list[str]]]) -> list[str]:
    from dpo.planning.grid import measured

    return [
        f"{job.words}: its longest pair alone takes {job.found.at_one_pair / 2**30:.1f} GiB of "
        f"{job.found.capacity / 2**30:.1f} that a card of {job.config.hardware.memory_gb:g} GB leaves"
        for job in measured(jobs)
        if not job.found.fits and job.found.at_one_pair > job.found.capacity
    ]


if __name__ == "__main__":
    from dpo.records.quiet import quiet

    quiet()
    # Of the process that started this one.
    print(json.dumps(_unfit(pickle.load(sys.stdin.buffer))))  # noqa: S301
