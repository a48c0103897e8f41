"""Atomic, durable writes: a reader sees the old file or the new one, never a torn one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError

SEAL = "seal"


def write_text(path: Path, text: str) -> None:
    """Write aside, fsync, rename over `path`, fsync the folder."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        sync(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file into errors of the system that come without one, as those of writing and syncing do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, data: Any) -> None:
    """`write_text` of indented JSON; NaN is refused, so that any reader can parse it."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_regular(path: Path, most: int = 64 << 20) -> bytes:
    """The bytes of a file; raises OSError for a device or a pipe, which might never end, and beyond `most` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"more than {most >> 20} MiB", str(path))
        return file.read(most)


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the SHA-256 of all its other entries: damage and later edits show. It is no signature."""
    rest = {key: value for key, value in data.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return {**rest, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """`write_json` of what others will read figures from, sealed."""
    # What JSON makes of it is what a reader will find: keys as text, tuples as lists.
    write_json(path, sealed(json.loads(json.dumps(data, allow_nan=False))))


def check_seal(path: Path, data: dict[str, Any]) -> None:
    """Take the seal out of what was read from `path`; raises CheckpointError when something else was sealed."""
    if SEAL in data and sealed(data)[SEAL] != data.pop(SEAL):
        raise CheckpointError(f"{path}: damaged or edited after it was written; its own hash differs")


def sync(path: Path) -> None:
    """Make what a file holds, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
