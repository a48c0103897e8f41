"""Verdicts kept across evaluations, by content: what was judged once is never asked for again.

SQLite, each row with a checksum. A damaged row is dropped and asked for again; a damaged file is set aside and a new
one begun, with one line each. Processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from dpo.errors import CheckpointError, DiskFull
from dpo.evaluation.judges.interface import AnyJudge, Item, PairItem, Verdict

T = TypeVar("T")
SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, judge TEXT NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL, made REAL NOT NULL
) WITHOUT ROWID
"""
WAIT_SECONDS = 60.0
BATCH = 500


def verdict_key(judge: AnyJudge, item: Item | PairItem) -> bytes:
    """32 bytes over the judge's name and fingerprint and the whole content of the item."""
    content = json.dumps([judge.name, judge.fingerprint, item.content(judge.reads)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


class VerdictCache:
    """The file at `path`, made when missing; `say` prints one line when something had to be dropped."""

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._say = say or (lambda line: print(line, file=sys.stderr))

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Verdict]:
        """The intact verdicts among `keys`, with "" for an id."""

        def find(db: sqlite3.Connection) -> dict[bytes, Verdict]:
            found: dict[bytes, Verdict] = {}
            damaged: list[tuple[bytes]] = []
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                marks = ",".join("?" * len(batch))
                query = f"SELECT key, value, checksum FROM verdicts WHERE key IN ({marks})"  # noqa: S608 - marks only
                for key, value, checksum in db.execute(query, batch):
                    if isinstance(value, bytes) and _checksum(key, value) == checksum:
                        found[key] = Verdict(id="", **json.loads(value))
                    else:
                        damaged.append((key,))
            if damaged:
                with db:
                    db.executemany("DELETE FROM verdicts WHERE key = ?", damaged)
                self._say(f"{self.path}: {len(damaged)} damaged verdicts dropped; they are made again")
            return found

        return self._with(find)

    def write(self, judge: str, verdicts: Mapping[bytes, Verdict]) -> None:
        """Keep decided verdicts, at once on disk."""
        rows = []
        for key, verdict in verdicts.items():
            value = json.dumps(
                {k: v for k, v in asdict(verdict).items() if k != "id"}, ensure_ascii=False, allow_nan=False
            ).encode("utf-8", "surrogatepass")
            rows.append((key, judge, value, _checksum(key, value), time.time()))

        def keep(db: sqlite3.Connection) -> None:
            with db:
                db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", rows)

        self._with(keep)

    def counts(self) -> list[tuple[str, int]]:
        """(judge, verdicts kept), by name."""
        return self._with(
            lambda db: list(db.execute("SELECT judge, COUNT(*) FROM verdicts GROUP BY judge ORDER BY judge"))
        )

    def prune(self, seconds: float) -> int:
        """Forget verdicts made more than `seconds` ago; returns how many."""

        def remove(db: sqlite3.Connection) -> int:
            with db:
                count = db.execute("DELETE FROM verdicts WHERE made <= ?", (time.time() - seconds,)).rowcount
            db.execute("VACUUM")
            return count

        return self._with(remove)

    def _with(self, act: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._open(act)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_FULL":
                raise DiskFull(f"{self.path}: no space left for verdicts") from None
            raise CheckpointError(f"{self.path}: {error}; DPO_CACHE=FOLDER puts the cache elsewhere") from None
        except sqlite3.DatabaseError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._say(f"{self.path}: {error}; set aside as {aside.name}, verdicts are made again")
            return self._open(act)

    def _open(self, act: Callable[[sqlite3.Connection], T]) -> T:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(SCHEMA)
            return act(db)


def with_ids(verdicts: Iterable[tuple[str, Verdict]]) -> list[Verdict]:
    """Verdicts under the ids of the items they are asked for."""
    return [replace(verdict, id=name) for name, verdict in verdicts]


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:16]
