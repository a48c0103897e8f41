"""One owner a run directory: a lock that falls with its process, and signs of life for where a lock does not reach.

The lock tells the processes of one machine apart at once, however they end. On a disk that several machines share it
may not hold between them: there run.json names its owner, who renews `updated` in it every BEAT_SECONDS.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from dpo.errors import CheckpointError

LOCK = ".owner.lock"
BEAT_SECONDS = 20.0


class Lost(CheckpointError):
    """Another process has taken this run over."""


class Owner:
    """This process's hold on a run directory, taken when made; raises BlockingIOError where another process has it.

    `name` stands in run.json as `owner`. Forked children do not share the hold: filelock closes it in them.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self.name = uuid.uuid4().hex
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise BlockingIOError(f"{folder}: another process holds it") from None

    def release(self) -> None:
        """Let another process have it."""
        self._lock.release()


@contextlib.contextmanager
def signs_of_life(sign: Callable[[], object]) -> Iterator[None]:
    """Give `sign` every BEAT_SECONDS while the block runs, from a thread of its own."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            # A full disk, or a run that is another's now, is for those to report who write what matters.
            with contextlib.suppress(OSError, Lost):
                sign()

    threading.Thread(target=beat, name="sign-of-life", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
