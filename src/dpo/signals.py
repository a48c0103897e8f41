"""SIGINT and SIGTERM from the first instruction of a verb to its last: one line and 130 or 143, never a traceback.

While libraries are imported and a config is composed nothing can be lost, and an exception raised in the middle of an
import is swallowed or printed by whoever imports: the process ends at once (`stand`). A verb at work unwinds, so that
it takes back what it has begun (`unwinding`); training has its own ways (`dpo.training.interrupts`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def stand() -> None:
    """End this process at a signal from here on."""
    for number in NUMBERS:
        signal.signal(number, end)


def end(number: int, frame: FrameType | None) -> None:
    """Say so and end at once."""
    _say()
    os._exit(128 + number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """While the block runs, let a signal raise KeyboardInterrupt or SystemExit; only where `stand` was called."""
    if signal.getsignal(signal.SIGINT) is not end:
        yield
        return
    for number in NUMBERS:
        signal.signal(number, _unwind)
    try:
        yield
    finally:
        for number in NUMBERS:
            if signal.getsignal(number) is _unwind:
                signal.signal(number, end)


def after(previous: Any, code: int | None) -> Any:
    """The handler for when a run's own is taken away, where `previous` stood before it and `code` is how it ended."""
    if code is None or previous not in (end, _unwind):
        return previous
    return lambda number, frame: os._exit(code)


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or around it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def behind(error: BaseException) -> int | None:
    """The signal in whose unwinding `error` was raised; None where no signal came.

    What a library does on its way out may fail on what the signal left half done, and hide the signal with that.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, KeyboardInterrupt):
            return signal.SIGINT
        if isinstance(chain, Ended):
            return chain.number
        chain = chain.__context__
    return None


class Ended(SystemExit):
    """SIGTERM, where a verb unwinds."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def _unwind(number: int, frame: FrameType | None) -> None:
    if importing(frame):
        end(number, frame)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _say()
    raise Ended(number)


def _say() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
