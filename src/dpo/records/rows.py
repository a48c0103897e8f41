"""Files of rows that figures come from: a running hash over their lines, which others remember and check them by.

A mark says how many whole lines a file had and what they hash to. The writer keeps it up to date as it adds lines; who
reads the file compares. A line torn by a kill lies behind every mark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.records.files import read_regular

MOST = 4 << 30
"""Bytes of a file of rows that are read."""
Mark = dict[str, Any]
"""{"lines": count, "sha256": hex over the bytes of those lines, newlines included}."""


class Running:
    """The mark of lines as they are written."""

    def __init__(self, text: bytes = b"") -> None:
        self._hash = hashlib.sha256()
        self._lines = 0
        self.add(text)

    def add(self, text: bytes) -> None:
        """Count whole lines that were added to the file."""
        self._hash.update(text)
        self._lines += text.count(b"\n")

    def mark(self) -> Mark:
        """The mark of all lines so far."""
        return {"lines": self._lines, "sha256": self._hash.hexdigest()}


def marked(data: bytes, mark: Mapping[str, Any]) -> bytes | None:
    """The lines of a file that a mark stands for; None when they are not there as they were written."""
    try:
        lines, digest = int(mark["lines"]), str(mark["sha256"])
    except (KeyError, TypeError, ValueError):
        return None
    end = 0
    for _ in range(lines):
        end = data.find(b"\n", end) + 1
        if end == 0:
            return None
    return data[:end] if hashlib.sha256(data[:end]).hexdigest() == digest else None


def content(path: Path) -> bytes:
    """The bytes of a file; none where there is no file. Raises CheckpointError when it cannot be read."""
    try:
        return read_regular(path, MOST)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def check_rows(path: Path, mark: Mapping[str, Any], keeper: str, way_out: str, whole: bool = True) -> None:
    """Raise CheckpointError, ending in `way_out`, unless a file is as marked in the file named `keeper`; not `whole`:
    lines may have followed."""
    data = content(path)
    found = marked(data, mark)
    if found is None or (whole and found != data):
        known, have = mark.get("lines"), f"{len(data.splitlines())} lines" if path.exists() else "no file"
        what = f"{keeper} knows {known} lines of another hash, {have} now"
        raise CheckpointError(f"{path}: not as it was written: {what}\n{way_out}")
