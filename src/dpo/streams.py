"""What a verb prints may find its reader gone, its disk full or its terminal without a letter: the work goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


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


def forgive() -> None:
    """Make stdout and stderr such streams; where one is closed, nothing else must get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        new = io.TextIOWrapper(
            io.BufferedWriter(Forgiving(descriptor, "w", closefd=False)),
            encoding="utf-8" if old is None else old.encoding,
            errors="backslashreplace",
            line_buffering=old is not None and old.line_buffering,
            write_through=old is not None and old.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def reader_left() -> bool:
    """Whether whoever read stdout has gone."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Forgiving) and raw.reader_left
