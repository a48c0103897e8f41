"""Who is computing something, in a form that another process can check for being alive."""

from __future__ import annotations

import os
import socket
import time
import uuid

import psutil

from dpo.records.process import process_mark

FOREIGN_SECONDS = 3600.0
"""A claim from another host cannot be checked; after this long it counts as abandoned."""


class Claimant:
    """This process as `host|pid|start|nonce`; the nonce tells two uses within one process apart."""

    def __init__(self) -> None:
        self._nonce = uuid.uuid4().hex
        self.name = f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}|{self._nonce}"

    def __enter__(self) -> Claimant:
        _LIVE.add(self._nonce)
        return self

    def __exit__(self, *_: object) -> None:
        _LIVE.discard(self._nonce)

    @staticmethod
    def is_alive(name: str, taken: float) -> bool:
        """False once the process that wrote `name` is gone (a reused pid has another start)."""
        try:
            host, pid, started, nonce = name.split("|")
            if host != socket.gethostname():
                return time.time() - taken < FOREIGN_SECONDS
            if int(pid) == os.getpid():
                return nonce in _LIVE
            return _started(int(pid)) == started
        except (ValueError, psutil.NoSuchProcess):
            return False


_LIVE: set[str] = set()


def _started(pid: int) -> str:
    """What no other process has: not the start by the clock, which moves when the clock is set."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    return process_mark(pid) or f"{process.create_time():.2f}"
