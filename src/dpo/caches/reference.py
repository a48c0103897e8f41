"""Reference log-probs kept across runs: content-addressed, one entry a pair, computed once among all processes.

No torch here: the caller hands in the function that computes. SQLite in WAL mode holds two tables: `entries`, with a
checksum on each row, and `claims`, by which a process says that it is computing a pair. A claim whose process is gone
is taken over. A damaged row is computed again; a damaged file is set aside and a new one begun, with one line each.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dpo.caches.claims import Claimant
from dpo.caches.keys import Tokens, entry_key
from dpo.caches.sqlite import CacheFile, batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


T = TypeVar("T")
P = TypeVar("P", bound=Tokens)
LogProbs = tuple[float, float]
"""(chosen, rejected), nats: the sum over completion tokens."""

ENTRY = "<dddd"
"""The value of an entry: chosen and rejected in nats, and the seconds and CPU seconds that computing the pair took."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, context TEXT NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL, taken REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (context TEXT PRIMARY KEY, used REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass
class Counters:
    """Pairs that one `ReferenceCache` found, computed, or found damaged, and what computing all of them took."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    seconds: float = 0.0
    """Of whoever computed them, this process or another; `cpu_seconds` of all its threads."""
    cpu_seconds: float = 0.0


class ReferenceCache:
    """A file of reference log-probs that any number of processes of one machine may fill together."""

    def __init__(self, path: Path, *, say: Callable[[str], None] | None = None, poll_seconds: float = 0.2) -> None:
        """Args: path of the SQLite file, made when missing (not on a network file system: WAL needs shared memory);
        `say` prints one line when something had to be rebuilt; `poll_seconds` between looks at another's work."""
        self.path = path
        self.counters = Counters()
        self._file = CacheFile(path, SCHEMA, "reference cache", say)
        self._poll = poll_seconds

    def fill(
        self,
        pairs: Sequence[P],
        context: str,
        compute: Callable[[list[P]], list[LogProbs]],
        *,
        chunk: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, LogProbs]:
        """Reference log-probs of `pairs` by pair id, computing what is missing and no other process is computing.

        A value read back is bit-identical to the one that was computed. Values that are not finite are returned but
        not kept.

        Args:
            context: from `keys.context_key`.
            compute: log-probs of a list of pairs, in its order; called with up to `chunk` pairs that nobody has.
            chunk: pairs computed and stored at a time, so a kill loses at most that many.
            progress: called with (pairs done, pairs in all).

        Raises:
            DiskFull, CheckpointError: the file cannot be written or opened.
        """
        # Pairs may lie on disk: only their keys are kept, and where the first of each is.
        names: list[tuple[str, bytes]] = []
        keys: dict[bytes, int] = {}
        for index, pair in enumerate(pairs):
            names.append((pair.id, entry_key(context, pair)))
            keys.setdefault(names[-1][1], index)
        order = list(keys)
        found: dict[bytes, LogProbs] = {}
        with Claimant() as claimant:
            self._file.once(lambda db: self._touch(db, context))
            # Each key is looked up once, and again only where another process was at work on it.
            unread = order
            while unread:
                known = self._file.once(lambda db, keys=unread: self._read(db, keys, context))  # type: ignore[misc]
                self.counters.hits += len(known)
                found.update(known)
                if known and progress is not None:
                    progress(len(found), len(order))
                missing = [key for key in unread if key not in known]
                unread, start = [], 0
                while start < len(missing):
                    mine, others, start = self._file.once(
                        lambda db, keys=missing, start=start: self._claim(db, keys, start, chunk, claimant)  # type: ignore[misc]
                    )
                    unread += others
                    if mine:
                        part = [pairs[keys[key]] for key in mine]
                        found.update(self._compute(mine, part, context, compute, claimant))
                        if progress is not None:
                            progress(len(found), len(order))
                if not known and len(unread) == len(missing):
                    time.sleep(self._poll)
        return {name: found[key] for name, key in names}

    def contexts(self) -> list[tuple[str, int, float]]:
        """(context, entries, time of last use) of everything kept, the most recently used first."""
        query = (
            "SELECT e.context, COUNT(*), MAX(MAX(e.created), COALESCE(MAX(u.used), 0)) FROM entries e"
            " LEFT JOIN uses u ON u.context = e.context GROUP BY e.context ORDER BY 3 DESC"
        )
        return self._file.once(
            lambda db: [(str(c, errors="replace"), int(n), float(t)) for c, n, t in db.execute(query)]
        )

    def prune(self, contexts: Iterable[str]) -> int:
        """Remove all entries of `contexts` and give the room back; returns how many entries went."""

        def remove(db: sqlite3.Connection) -> int:
            removed = 0
            with db:
                for context in contexts:
                    removed += db.execute("DELETE FROM entries WHERE context = ?", (context,)).rowcount
                    db.execute("DELETE FROM uses WHERE context = ?", (context,))
            db.execute("VACUUM")
            return removed

        return self._file.once(remove)

    def _compute(
        self,
        mine: list[bytes],
        pairs: list[P],
        context: str,
        compute: Callable[[list[P]], list[LogProbs]],
        claimant: Claimant,
    ) -> dict[bytes, LogProbs]:
        began, used = time.monotonic(), time.process_time()
        try:
            values = compute(pairs)
            if len(values) != len(mine):
                raise AssertionError(f"compute returned {len(values)} values for {len(mine)} pairs")
        except BaseException:
            self._file.once(lambda db: self._release(db, mine, claimant))
            raise
        took = (time.monotonic() - began) / len(mine), (time.process_time() - used) / len(mine)
        self.counters.misses += len(mine)
        self.counters.seconds += took[0] * len(mine)
        self.counters.cpu_seconds += took[1] * len(mine)
        fresh = {key: (float(chosen), float(rejected)) for key, (chosen, rejected) in zip(mine, values, strict=True)}
        self._file.once(lambda db: self._write(db, fresh, took, context, claimant))
        return fresh

    def _read(self, db: sqlite3.Connection, keys: list[bytes], context: str) -> dict[bytes, LogProbs]:
        found: dict[bytes, LogProbs] = {}
        damaged: list[bytes] = []
        for marks, batch in batches(keys):
            query = f"SELECT key, context, value, checksum FROM entries WHERE key IN ({marks})"  # noqa: S608 - marks only
            for key, owner_context, value, checksum in db.execute(query, batch):
                if _intact(key, owner_context, value, checksum) and owner_context == context.encode():
                    chosen, rejected, seconds, cpu_seconds = struct.unpack(ENTRY, value)
                    found[key] = chosen, rejected
                    self.counters.seconds += seconds
                    self.counters.cpu_seconds += cpu_seconds
                else:
                    damaged.append(key)
        if damaged:
            with db:
                db.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in damaged])
            self.counters.damaged += len(damaged)
            self._file.say(f"reference cache {self.path}: {len(damaged)} damaged entries, computing them again")
        return found

    def _claim(
        self, db: sqlite3.Connection, keys: list[bytes], start: int, chunk: int, claimant: Claimant
    ) -> tuple[list[bytes], list[bytes], int]:
        """Claim up to `chunk` of `keys` from `start` on: (those, the ones on the way that others have stored or are at
        work on, where to go on)."""
        db.execute("BEGIN IMMEDIATE")
        with db:
            rows = db.execute("SELECT key, owner, taken FROM claims")
            claims = {key: (str(name, errors="replace"), float(taken)) for key, name, taken in rows}
            alive: dict[str, bool] = {}
            mine: list[bytes] = []
            others: list[bytes] = []
            while start < len(keys) and len(mine) < chunk:
                key = keys[start]
                start += 1
                if key in claims:
                    name, taken = claims[key]
                    if name not in alive:
                        alive[name] = Claimant.is_alive(name, taken)
                    (others if alive[name] else mine).append(key)
                elif db.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone():
                    others.append(key)
                else:
                    mine.append(key)
            taken_now = [(key, claimant.name, time.time()) for key in mine]
            db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", taken_now)
        return mine, others, start

    def _write(
        self,
        db: sqlite3.Connection,
        fresh: dict[bytes, LogProbs],
        took: tuple[float, float],
        context: str,
        claimant: Claimant,
    ) -> None:
        rows = []
        for key, pair in fresh.items():
            if all(math.isfinite(x) for x in pair):
                value = struct.pack(ENTRY, *pair, *took)
                rows.append((key, context, value, _checksum(key, context, value), time.time()))
        with db:
            db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            self._release(db, list(fresh), claimant)

    @staticmethod
    def _release(db: sqlite3.Connection, keys: list[bytes], claimant: Claimant) -> None:
        with db:
            db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(key, claimant.name) for key in keys])

    @staticmethod
    def _touch(db: sqlite3.Connection, context: str) -> None:
        with db:
            db.execute("INSERT OR REPLACE INTO uses VALUES (?, ?)", (context, time.time()))


def _checksum(key: bytes, context: str, value: bytes) -> bytes:
    return hashlib.sha256(b"\0".join((key, context.encode(), value))).digest()[:16]


def _intact(key: object, context: object, value: object, checksum: object) -> bool:
    # A flipped bit can change the type of a column as well as its bytes.
    if not (isinstance(key, bytes) and isinstance(context, bytes) and isinstance(value, bytes)):
        return False
    if len(value) != struct.calcsize(ENTRY):
        return False
    return hashlib.sha256(b"\0".join((key, context, value))).digest()[:16] == checksum
