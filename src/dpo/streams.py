"""All that a verb prints goes through here, and none of it stops the work or drives the reader's terminal.

Its reader may be gone, its disk full, its terminal without a letter; and what files, models and servers say may hold
escapes. rich's consoles, whose own colours and bars must pass, clean their text themselves (`dpo.records.terminal`).
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import Any

# Escape sequences whole (CSI, OSC up to its end, two-character ones), then any control character that is left, the
# C1 range included, and marks that reorder text on screen.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text that is safe to print: terminal escapes, control and bidirectional characters removed, newlines kept."""
    if not _CONTROL.search(text):
        return text
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


class Forgiving(io.FileIO):
    """What cannot be written is dropped. `reader_left` tells that nobody will ever read it."""

    reader_left = False

    def write(self, data: Any) -> int:
        """All of `data`, as far as the caller is told."""
        try:
            super().write(data)
        except OSError as error:
            self.reader_left |= error.errno == errno.EPIPE
        return len(data)


class Cleaned(io.TextIOWrapper):
    """Text is cleaned on its way out; other libraries' bars keep the carriage return that draws them over."""

    def write(self, text: str) -> int:
        """Returns the length of the text as it was given."""
        super().write(f"\r{clean(text[1:])}" if text.startswith("\r") else clean(text))
        return len(text)


class AsItIs:
    """A cleaned stream for a writer that cleans what it shows and has escapes of its own."""

    def __init__(self, stream: Cleaned) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns the length of the text."""
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """Make stdout and stderr such streams; where one is closed, nothing else must get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        new = Cleaned(
            io.BufferedWriter(Forgiving(descriptor, "w", closefd=False)),
            encoding="utf-8" if old is None else old.encoding,
            errors="backslashreplace",
            # Errors and notes stand where they were said, also among the results in one pipe; so does all with
            # PYTHONUNBUFFERED, whose own stream has no buffer to flush.
            line_buffering=name == "stderr" or (old is not None and (old.line_buffering or old.write_through)),
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def reader_left() -> bool:
    """Whether whoever read stdout has gone."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Forgiving) and raw.reader_left
