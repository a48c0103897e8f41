"""SIGINT and SIGTERM: at once while nothing can be lost, at the next safe point while training."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from dpo.errors import Interrupted


class Interrupts:
    """Use as a context manager around a run.

    Outside `deferred` a signal raises Interrupted where it strikes. Inside, the first one is kept in `pending` and
    raised by `check` or at the end of the block; a second one raises at once, unless it comes within `echo_seconds`.
    """

    def __init__(self, echo_seconds: float = 0.0) -> None:
        self.pending: int | None = None
        self._echo_seconds, self._came = echo_seconds, -float("inf")
        self._deferred = self._over = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        before, self._came = self._came, time.monotonic()
        if self._deferred and self.pending is None:
            self.pending = number
            return
        if self._came - before < self._echo_seconds:
            return
        raise Interrupted(number)

    def over(self) -> None:
        """All that was to be done is done: a signal changes nothing from here on, nor does one that is pending."""
        self._over = True
        self.pending = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep the first signal for a safe point."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raise Interrupted when a signal is pending."""
        if self.pending is not None:
            raise Interrupted(self.pending)
