"""A SQLite file that any number of processes of one machine may share and that survives its own damage."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from dpo.errors import CheckpointError, DiskFull

T = TypeVar("T")
WAIT_SECONDS = 120.0
WAL_BYTES = 1 << 16


class CacheFile:
    """The file at `path` with the tables of `schema`, both made when missing.

    Not for a network file system: WAL needs shared memory. A damaged file is set aside and a new one begun, with one
    line through `say`. Text comes back as bytes, for damaged text must reach the checksum of its row and not fail to
    decode. `what` names the file in messages.
    """

    def __init__(self, path: Path, schema: str, what: str, say: Callable[[str], None] | None = None) -> None:
        self.path, self.schema, self.what = path, schema, what
        self.say = say or (lambda line: print(line, file=sys.stderr))

    def once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on a fresh connection; a damaged file is replaced and the work done on the new one.

        Raises DiskFull or CheckpointError when the file cannot be written or opened.
        """
        for attempt in range(3):
            try:
                with closing(self._connect()) as db:
                    return work(db)
            except sqlite3.DatabaseError as error:
                if not _means_damage(error):
                    raise self._explain(error) from error
                if attempt == 2:
                    raise CheckpointError(f"{self.path}: damaged again after a rebuild; check the disk") from error
                self._rebuild()
        raise AssertionError("unreachable")

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        db.text_factory = bytes
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(self.schema)
        except BaseException:
            db.close()
            raise
        return db

    def _rebuild(self) -> None:
        # Another process may have replaced the file while we waited for the lock.
        with FileLock(f"{self.path}.lock"):
            try:
                with closing(self._connect()) as db:
                    if db.execute("PRAGMA integrity_check").fetchone() == (b"ok",):
                        return
            except sqlite3.DatabaseError as error:
                if not _means_damage(error):
                    raise self._explain(error) from error
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.path.replace(aside)
            self.say(f"{self.what} {self.path}: damaged, set aside as {aside.name}, starting a new one")

    def _explain(self, error: sqlite3.DatabaseError) -> Exception:
        text = str(error)
        # The shared memory of a write-ahead log cannot grow on a full disk either, which SQLite calls an I/O error.
        if "full" in text or ("disk I/O" in text and shutil.disk_usage(self.path.parent).free < WAL_BYTES):
            return DiskFull(f"{self.path}: no room for the {self.what}; free some, or set DPO_CACHE to another disk")
        return CheckpointError(f"{self.path}: {self.what} cannot be used: {text}; set DPO_CACHE to another folder")


def _means_damage(error: sqlite3.DatabaseError) -> bool:
    # What the system around the file can cause; every other complaint is about the file's content.
    causes = ("locked", "full", "readonly", "unable to open", "disk i/o", "permission", "interrupted")
    return not any(cause in str(error).lower() for cause in causes)


def batches(keys: Sequence[bytes], size: int = 500) -> Iterator[tuple[str, list[bytes]]]:
    """(question marks, keys) of a few keys at a time, for `WHERE key IN (...)`: SQLite bounds its variables."""
    for start in range(0, len(keys), size):
        part = list(keys[start : start + size])
        yield ",".join("?" * len(part)), part
