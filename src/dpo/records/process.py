"""Which process a record was written by, and whether that one still lives."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

ALIVE_SECONDS = 120.0
"""A process of another machine cannot be looked at; it counts as alive for so long after its last sign of life."""


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process of this machine that wrote a record still lives; a reused pid is told apart by its start."""
    if record.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(record["pid"]))
        if record.get("pid_mark") is not None:
            same = process_mark(process.pid) == record["pid_mark"]
        else:
            same = abs(process.create_time() - float(record["pid_started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def silence(record: Mapping[str, Any]) -> float:
    """Seconds since the last sign of life of a run; endless where the record tells no time."""
    try:
        return max(0.0, time.time() - float(record["updated"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return float("inf")


def is_alive_elsewhere(record: Mapping[str, Any]) -> bool:
    """Whether the process of another machine that wrote a record is to be believed alive."""
    if record.get("host") in (None, socket.gethostname()):
        return False
    return silence(record) < ALIVE_SECONDS


def process_mark(pid: int) -> str | None:
    """Boot and start tick of a process, which no other has; None off Linux. A start time by the clock moves with it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"
