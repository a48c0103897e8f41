"""A job must not outlive the sweep that started it: the same command again would run it a second time."""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "DPO_SWEEP_PID"
LOOK_SECONDS = 0.5


def end_with_the_sweep() -> None:
    """When the sweep that started this process is gone, however it ended, send this process SIGTERM.

    Training then stops at its next safe point with a checkpoint, as for any SIGTERM. Does nothing outside a sweep;
    processes started from here have another parent and are not told of the sweep's.
    """
    parent = os.environ.pop(VARIABLE, None)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True, name="end-with-the-sweep").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
