"""The verbs as processes of their own: forked from a server that has imported them, or started like a user does."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torture_preload
from torture_preload import Arm

from dpo import signals, streams

LIMIT = 100.0
"""Seconds a process may take before it counts as hanging."""
At = tuple[str, int, int]
"""(place, n, signal): see tiny."""
VERBS = ("train", "evaluate", "export", "judge", "report", "compare", "audit", "status", "chat", "prepare", "cli")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("torture_process", "tiny", "bitsandbytes", "peft", *(f"dpo.{verb}" for verb in VERBS)),
        *("dpo.training.stages", "dpo.evaluation.measure", "dpo.release.export"),
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it; None: it hung), and what it printed."""

    code: int | None
    output: str
    seconds: float

    def fault(self) -> str | None:
        """What no process may ever do."""
        if self.code is None:
            return f"hung for {self.seconds:.0f} s; the end of its output: {self.output[-300:]!r}"
        if "Traceback (most recent call last)" in self.output:
            last = [line for line in self.output.splitlines() if line.strip()][-1]
            return f"traceback, exit {self.code}: {last[:300]}"
        if self.code == 1:
            return f"exit 1, which is nobody's: {self.output[-300:]!r}"
        return None


class Running:
    """A verb at work."""

    def __init__(self, process: Any, output: Path) -> None:
        self.process, self.output, self.began = process, output, time.monotonic()

    def send(self, number: int) -> None:
        """A signal to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, limit: float = LIMIT) -> Ended:
        """Until it ends or has taken `limit` seconds."""
        self.process.join(max(0.1, limit - (time.monotonic() - self.began)))
        code = self.process.exitcode
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
        seconds = time.monotonic() - self.began
        # A kill in its first moment leaves nothing said.
        said = self.output.read_text(errors="replace") if self.output.exists() else ""
        return Ended(code, said, seconds)


def start(
    verb: str,
    argv: Sequence[str],
    cwd: Path,
    output: Path,
    *,
    at: Sequence[At] = (),
    arm: Arm | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    start_at: float = 0.0,
    memory: int | None = None,
) -> Running:
    """Fork `python -m dpo.<verb> argv` in `cwd`; it begins at `start_at` by the clock, so that several may together.

    `memory`: bytes of data the process may hold.
    """
    what = (verb, list(argv), str(cwd), str(output), list(at), arm, dict(environment or {}), stdin, start_at, memory)
    process = _CONTEXT.Process(target=_child, args=what)
    process.start()
    return Running(process, output)


def _child(
    verb: str,
    argv: list[str],
    cwd: str,
    output: str,
    at: list[At],
    how: Arm | None,
    environment: dict[str, str],
    stdin: str,
    start_at: float,
    memory: int | None,
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.pop("LD_PRELOAD", None)
    os.environ.update(environment)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    reading, writing = os.pipe()
    os.write(writing, stdin.encode())
    os.close(writing)
    for source, target in ((reading, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.argv = [f"dpo.{verb}", *argv]
    sys.orig_argv = ["python", "-m", f"dpo.{verb}", *argv]
    # What `python -m dpo.<verb>` does before anything else is imported.
    signals.stand()
    streams.forgive()
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    import torch

    torch.set_num_threads(1)
    module = importlib.import_module(f"dpo.{verb}")
    if at:
        import tiny

        for strike in at:
            tiny._signal_at(*strike)
    if how is not None:
        torture_preload.arm(how)
    time.sleep(max(0.0, start_at - time.time()))
    module.main()


def spawn(
    verb: str, argv: Sequence[str], cwd: Path, environment: Mapping[str, str], **how: Any
) -> subprocess.Popen[bytes]:
    """`python -m dpo.<verb> argv` as a user starts it, in a session of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.Popen(
        [sys.executable, "-m", f"dpo.{verb}", *argv], cwd=cwd, env={**clean, **environment}, stdin=subprocess.DEVNULL,
        start_new_session=True, **how,
    )  # fmt: skip


def end(process: subprocess.Popen[bytes], limit: float = LIMIT) -> int | None:
    """Wait for what `spawn` started: its exit code, or None when it hung and was killed."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
