"""From one command to one process a device: starts the ranks of a run, passes signals on, and tells how they ended.

They are minded here and not by torchrun's agent, which kills what has not ended 30 seconds after a signal (a step and
its checkpoint may take longer) and turns every exit code into 1. Under torchrun or accelerate launch a run just joins.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dpo.config.composing.leftovers import RANK_VARIABLES, around
from dpo.config.entry import HYDRA, SWEEP_DIR
from dpo.config.hardware import Device, Parallel
from dpo.errors import ConfigError
from dpo.records.process import is_alive
from dpo.records.run import Run, read_record

if TYPE_CHECKING:
    from types import FrameType

    from dpo.config.hardware import Hardware
    from dpo.config.schema import Config

GRACE = 30.0
"""Seconds the other ranks have to end by themselves once one has failed; a rank inside a collective cannot."""
POLL = 0.1
STARTED = "DPO_RANK_OF"
"""Set to the parent's pid in ranks started here."""


@dataclass(frozen=True)
class Place:
    """Which process of how many this one is, on its machine and in all."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def starts_ranks(hardware: Hardware) -> bool:
    """Whether this process should start the ranks of a run and mind them instead of training."""
    if around():
        if hardware.parallel is Parallel.none and int(os.environ["WORLD_SIZE"]) > 1:
            raise ConfigError(
                f"hardware.parallel=none, but a launcher started {os.environ['WORLD_SIZE']} processes; "
                "set hardware.parallel=ddp"
            )
        return False
    return hardware.parallel is not Parallel.none and count_processes(hardware) > 1


def count_processes(hardware: Hardware) -> int:
    """Processes to start on this machine: `hardware.processes`, by default one a visible GPU."""
    import torch

    gpus = 0 if hardware.device is Device.cpu else torch.cuda.device_count()
    if hardware.processes is None:
        if gpus == 0:
            raise ConfigError(f"hardware.parallel={hardware.parallel.name}: no GPU here; say hardware.processes=N")
        return gpus
    if gpus and hardware.processes > gpus:
        raise ConfigError(f"hardware.processes={hardware.processes}: {gpus} GPUs are visible here")
    return hardware.processes


def take_place() -> Place | None:
    """Read this rank's place from its launcher and make the rest of the process a program of one GPU.

    Must run before torch is imported: afterwards only the rank's own GPU is visible, and neither accelerate nor the
    Trainer sees a launcher. What a rank other than 0 prints is dropped. None without a launcher around.
    """
    if not around():
        return None
    rank, local_rank, size, local_size = (int(os.environ.pop(name, "0")) for name in RANK_VARIABLES)
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(max(1, local_size))]
    # Slurm may already have given each process its one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local_rank] if local_rank < len(devices) else devices[-1]
    if os.environ.pop(STARTED, None):
        _end_with_parent()
    if size == 1:
        return None
    if rank != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    return Place(rank, size, local_rank, max(1, local_size))


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None


def run(config: Config) -> Path:
    """Start one process a device on this command line, wait for all, and exit with the code of the run.

    The run directory is opened and held here and handed to the ranks. Returns it when all went well.
    """
    from dpo.modeling.device import choose_compute
    from dpo.records.opening import OWNER, open_here

    count = count_processes(config.hardware)
    on_cpu = choose_compute(config.hardware.device, config.hardware.precision).device == "cpu"
    shared = meeting(count, on_cpu)
    held, _ = open_here(config)
    folder, owner = held.folder, held.record["owner"]
    # What the entry added to the words of the user; a rank's own entry adds its own.
    arguments = [word for word in sys.argv[1:] if word not in HYDRA and not word.startswith(SWEEP_DIR)]
    print(f"{config.hardware.parallel.name} over {count} {'CPU processes' if on_cpu else 'GPUs'}", flush=True)
    ranks: list[_Rank] = []
    minder = _Minder(ranks)
    with minder:
        for number in range(count):
            environment = {**shared, "DPO_RUN_FOLDER": str(folder), OWNER: owner, STARTED: str(os.getpid())}
            environment |= dict(zip(RANK_VARIABLES, map(str, (number, number, count, count)), strict=True))
            output = tempfile.TemporaryFile() if number else None  # noqa: SIM115 - read when the rank has ended
            process = subprocess.Popen(
                [sys.executable, "-m", "dpo.train", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C reaches this process alone, which passes it on once.
                start_new_session=True,
            )
            ranks.append(_Rank(number, process, output))
        minder.wait()
    code = conclude(folder, ranks, minder.stopped)
    if code != 0:
        sys.exit(code)
    return folder


def meeting(count: int, on_cpu: bool) -> dict[str, str]:
    """The environment that `count` ranks of this machine share: where they meet, and how many threads each computes
    with."""
    threads = max(1, (os.cpu_count() or 1) // count) if on_cpu else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


class _Minder:
    """Passes signals to the ranks, and stops those that are left when one has failed."""

    def __init__(self, ranks: list[_Rank]) -> None:
        self.ranks = ranks
        self.stopped: list[int] = []
        """Ranks that had to be killed because another had failed."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Minder:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.kill()
                rank.process.wait()
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def wait(self) -> None:
        """Until no rank runs any more."""
        deadline = None
        while running := [rank for rank in self.ranks if rank.process.poll() is None]:
            if deadline is None and any(rank.process.poll() for rank in self.ranks):
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                self.stopped = [rank.number for rank in running]
                for rank in running:
                    rank.process.kill()
            time.sleep(POLL)


def conclude(folder: Path, ranks: list[_Rank], stopped: list[int]) -> int:
    """The exit code of the run; run.json and the terminal are told what rank 0 could not tell."""
    codes = {rank.number: _code(rank.process.returncode) for rank in ranks if rank.number not in stopped}
    failed = {number: code for number, code in codes.items() if code != 0}
    if not failed:
        return 0
    # A rank that was killed or knows its reason comes before those that only lost their connection to it.
    cause = min(failed, key=lambda number: (failed[number] == 1, failed[number] < 128, number))
    code = failed[cause]
    record = read_record(folder) if (folder / "run.json").is_file() else None
    if record is not None and record["status"] == "complete" and not is_alive(record):
        return 0
    if cause == 0 and (record is None or record["status"] != "running"):
        return code
    reason = f"rank {cause} was killed by signal {code - 128}" if code > 128 else f"rank {cause} exited with {code}"
    if cause != 0:
        output = ranks[cause].output
        if output is not None:
            output.seek(0)
            sys.stderr.write(output.read()[-8000:].decode(errors="replace"))
        print(f"{reason}; the other ranks were stopped", file=sys.stderr, flush=True)
    if record is not None:
        from dpo.records.opening import STATUS_OF

        status = STATUS_OF.get(code, "killed" if code > 128 else "failed")
        Run(folder, record).finish(status, reason, code)
    return code


def _code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
