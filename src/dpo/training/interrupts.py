"""SIGINT and SIGTERM: at once while nothing can be lost, at the next safe point while training."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from dpo import signals
from dpo.errors import Interrupted


class Interrupts:
    """Use as a context manager around a run.

    Outside `deferred` a signal raises Interrupted where it strikes; in an import, at the next `check`. Inside, the
    first one is kept in `pending` and raised by `check` or at the end of the block; a second one raises at once, unless
    it comes within `echo_seconds`.
    """

    def __init__(self, echo_seconds: float = 0.0) -> None:
        self.pending: int | None = None
        self._echo_seconds, self._came = echo_seconds, -float("inf")
        self._deferred = False
        self._code: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signals.after(previous, self._code))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._code is not None:
            return
        before, self._came = self._came, time.monotonic()
        known, self.pending = self.pending is not None, number
        # Whoever imports may swallow what is raised in the middle of it. Others may too: so it stays pending as well.
        if not known and (self._deferred or signals.importing(frame)):
            if self._deferred and not self._echo_seconds:
                with contextlib.suppress(OSError):
                    os.write(2, b"\nstopping at the next safe point; once more stops at once\n")
            return
        if self._came - before < self._echo_seconds:
            return
        raise Interrupted(number)

    def over(self, code: int) -> None:
        """How the run ends is settled: a signal changes nothing from here on, nor does one that is pending."""
        self._code, self.pending = code, None

    @contextlib.contextmanager
    def deferred(self, check: bool = True) -> Iterator[None]:
        """Keep the first signal for a safe point: the end of the block if `check`, else the next call of it."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if check:
            self.check()

    def check(self) -> None:
        """Raise Interrupted when a signal is pending."""
        if self.pending is not None:
            raise Interrupted(self.pending)
