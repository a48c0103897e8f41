"""What the baseline of an evaluation scores and answers, kept across runs: every job of a sweep has the same one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from dpo.caches.keys import context_key
from dpo.caches.sqlite import CacheFile
from dpo.config.parse import plain
from dpo.evaluation.answers import Asked, Drawer
from dpo.evaluation.sides import BASELINE, Sides

Row = dict[str, Any]
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, made REAL NOT NULL
)
WITHOUT ROWID
"""


def baseline_context(sides: Sides) -> str:
    """Hash of all that the baseline's figures depend on besides tokens: weights, how they are held and computed."""
    from dpo.engine.attention import path
    from dpo.engine.packed_forward import installed
    from dpo.modeling.device import choose_compute, kernels
    from dpo.modeling.modes import is_quantized

    config = sides.config
    held = "quantized" if any(is_quantized(module) for module in sides.baseline.modules()) else "dense"
    dtype = choose_compute(config.hardware.device, config.hardware.precision).dtype
    engine = path(sides.baseline, dtype) if installed(sides.baseline) else "plain"
    return context_key(
        base=sides.base,
        quantization=json.dumps(plain(config.lora.quantization), sort_keys=True),
        adapter=sides.adapter or "none",
        precision=str(dtype),
        device=kernels(sides.device.type),
        attention=" ".join(["evaluation", engine, config.hardware.attention, held]),
    )


class BaselineAnswers:
    """The file of lists of answers at `path`. A list is kept whole or not at all: rounding hangs on what is drawn
    together, so a part of one would not be what drawing gives."""

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._file = CacheFile(path, SCHEMA, "baseline answers", say)

    def remembering(self, draw: Drawer, context: str, settings: Mapping[str, Any]) -> Drawer:
        """`draw`, whose answers of the baseline are drawn once among all processes.

        `settings`: how answers are drawn, batch size included.
        """

        def drawer(side: str, asked: Asked, progress: Callable[[int], None]) -> Iterator[tuple[list[int], list[Row]]]:
            if side != BASELINE:
                yield from draw(side, asked, progress)
                return
            key = _key(context, settings, asked)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.{key.hex()[:16]}.lock"):
                kept = self._read(key)
                if kept is not None:
                    progress(len(kept))
                    yield list(range(len(kept))), kept
                    return
                made: dict[int, Row] = {}
                for indices, answers in draw(side, asked, progress):
                    made.update(zip(indices, answers, strict=True))
                    yield indices, answers
                self._write(key, [made[i] for i in range(len(asked))])

        return drawer

    def prune(self, seconds: float) -> int:
        """Forget lists made more than `seconds` ago, and locks left behind; returns how many lists."""
        for lock in self.path.parent.glob(f"{self.path.name}.*.lock"):
            lock.unlink()
        return self._file.once(
            lambda db: db.execute("DELETE FROM answers WHERE made <= ?", (time.time() - seconds,)).rowcount
        )

    def _read(self, key: bytes) -> list[Row] | None:
        query = "SELECT value, checksum FROM answers WHERE key = ?"
        found = self._file.once(lambda db: db.execute(query, (key,)).fetchone())
        if found is None:
            return None
        value, checksum = found
        if not isinstance(value, bytes) or _checksum(key, value) != checksum:
            self._file.say(f"{self.path}: damaged answers dropped; they are drawn again")
            return None
        rows: list[Row] = json.loads(value)
        return rows

    def _write(self, key: bytes, rows: list[Row]) -> None:
        value = json.dumps(rows).encode()

        def keep(db: Any) -> None:
            with db:
                row = (key, value, _checksum(key, value), time.time())
                db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", row)

        self._file.once(keep)


def _key(context: str, settings: Mapping[str, Any], asked: Asked) -> bytes:
    content = [context, dict(settings), [(prompt.id, prompt.ids, number) for prompt, number in asked]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:16]
