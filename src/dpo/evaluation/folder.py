"""An evaluation's folder: rows appended as they are made, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from dpo.config.evaluation import Evaluation
from dpo.config.parse import plain
from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import write_sealed, write_text
from dpo.records.read import check_evaluation, json_file
from dpo.records.rows import Mark, Running

T = TypeVar("T")
# Keys that change what is shown or how it is computed, not the rows.
PRESENTATION = ("show", "again", "batch_size", "resamples", "confidence")


@dataclass
class EvaluationFolder:
    """`<run>/evaluation/<name>/`: settings.json, the rows of each stage as JSONL, summary.json at the end."""

    path: Path

    @classmethod
    def open(cls, run: Path, config: Evaluation, facts: Mapping[str, str]) -> EvaluationFolder:
        """Make or continue the folder.

        `facts` are fingerprints of what the rows depend on besides the settings: the final weights, the held-out
        pairs. Raises ConfigError when rows of other settings are there.
        """
        path = run / "evaluation" / config.name
        settings = {k: v for k, v in plain(config).items() if k not in PRESENTATION} | {"facts": dict(facts)}
        if config.again:
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)
        written = path / "settings.json"
        if written.is_file():
            before = _or_again(written, json_file)
            # A setting that did not exist when the folder was made had today's default.
            if changed := sorted(key for key, value in before.items() if settings.get(key) != value):
                raise ConfigError(
                    f"{path}: made with another {', '.join(changed)}\n"
                    "evaluation.name=NEW keeps both; evaluation.again=true throws the earlier one away"
                )
        write_sealed(written, settings)
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held while writing, so that two evaluations of one name do not mix their rows."""
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise ConfigError(f"{self.path}: another process is evaluating here") from None

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The rows a stage has written; a last line torn by a kill is cut off the file."""
        path = self.path / f"{stage}.jsonl"
        if not path.is_file():
            return []
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            with path.open("r+b") as file:
                file.truncate(len(kept))
        return _or_again(path, lambda _: [json.loads(line) for line in kept.splitlines()])

    def append(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to a stage, at once on disk."""
        self._unmark(stage)
        with (self.path / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
            file.write(_lines(rows))

    def rewrite(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the rows of a stage, for those that are put together from others."""
        self._unmark(stage)
        write_text(self.path / f"{stage}.jsonl", _lines(rows))

    def marks(self) -> dict[str, Mark]:
        """The mark of every file of rows, for the summary that is made from them."""
        return {path.stem: Running(path.read_bytes()).mark() for path in sorted(self.path.glob("*.jsonl"))}

    def check(self) -> None:
        """Raise CheckpointError when rows are not those the summary was made from."""
        check_evaluation(self.path.parents[1], self.path.name, json_file(self.path / "summary.json"))

    def _unmark(self, stage: str) -> None:
        """A summary does not vouch for rows that are about to change, so that a kill leaves none that look damaged."""
        summary = json_file(self.path / "summary.json")
        if stage in (summary.get("rows") or {}):
            del summary["rows"][stage]
            write_sealed(self.path / "summary.json", summary)


def _or_again(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in a file of an evaluation; raises CheckpointError, with the way out, when it is damaged."""
    try:
        return read(path)
    except (CheckpointError, ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, CheckpointError) else f"{path}: a line of it is not readable"
        raise CheckpointError(f"{why}\nevaluation.again=true measures it anew") from None


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def digest(parts: Iterable[str]) -> str:
    """16 hex digits over texts, in order."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode())
        state.update(b"\0")
    return state.hexdigest()[:16]


def file_digest(paths: Iterable[Path]) -> str:
    """16 hex digits over the names and contents of files."""
    state = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            state.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return state.hexdigest()[:16]
