"""Verdicts kept across evaluations, by content: what was judged once is never asked for again.

SQLite, each row with a checksum. A damaged row is dropped and asked for again; a damaged file is set aside and a new
one begun, with one line each. Processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dpo.caches.sqlite import CacheFile, batches
from dpo.evaluation.judges.interface import AnyJudge, Item, PairItem, Verdict

SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, judge TEXT NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL, made REAL NOT NULL
) WITHOUT ROWID
"""


def verdict_key(judge: AnyJudge, item: Item | PairItem) -> bytes:
    """32 bytes over the judge's name and fingerprint and the whole content of the item."""
    content = json.dumps([judge.name, judge.fingerprint, item.content(judge.reads)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


class VerdictCache:
    """The file at `path`, made when missing; `say` prints one line when something had to be dropped."""

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._file = CacheFile(path, SCHEMA, "verdicts", say)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Verdict]:
        """The intact verdicts among `keys`, with "" for an id."""

        def find(db: sqlite3.Connection) -> dict[bytes, Verdict]:
            found: dict[bytes, Verdict] = {}
            damaged: list[tuple[bytes]] = []
            for marks, batch in batches(keys):
                query = f"SELECT key, value, checksum, typeof(value) FROM verdicts WHERE key IN ({marks})"  # noqa: S608 - marks only
                for key, value, checksum, kind in db.execute(query, batch):
                    if kind == b"blob" and _checksum(key, value) == checksum:
                        found[key] = Verdict(id="", **json.loads(value))
                    else:
                        damaged.append((key,))
            if damaged:
                with db:
                    db.executemany("DELETE FROM verdicts WHERE key = ?", damaged)
                self._file.say(f"{self.path}: {len(damaged)} damaged verdicts dropped; they are made again")
            return found

        return self._file.once(find)

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

        self._file.once(keep)

    def counts(self) -> list[tuple[str, int]]:
        """(judge, verdicts kept), by name."""
        return self._file.once(
            lambda db: [
                (str(judge, errors="replace"), int(count))
                for judge, count in db.execute("SELECT judge, COUNT(*) FROM verdicts GROUP BY judge ORDER BY judge")
            ]
        )

    def prune(self, seconds: float) -> int:
        """Forget verdicts made more than `seconds` ago; returns how many."""

        def remove(db: sqlite3.Connection) -> int:
            with db:
                count = db.execute("DELETE FROM verdicts WHERE made <= ?", (time.time() - seconds,)).rowcount
            db.execute("VACUUM")
            return count

        return self._file.once(remove)


def with_ids(verdicts: Iterable[tuple[str, Verdict]]) -> list[Verdict]:
    """Verdicts under the ids of the items they are asked for."""
    return [replace(verdict, id=name) for name, verdict in verdicts]


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:16]
