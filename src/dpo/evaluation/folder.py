"""An evaluation's folder: rows appended as they are made, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dpo.config.evaluation import Evaluation
from dpo.config.parse import plain
from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import write_sealed
from dpo.records.read import check_evaluation, json_file
from dpo.records.row_file import RowFile
from dpo.records.rows import Mark, Running

AGAIN = "evaluation.again=true measures it anew"
# Keys that change what is shown or how it is computed, not the rows.
PRESENTATION = ("show", "again", "batch_size", "resamples", "confidence")


@dataclass
class EvaluationFolder:
    """`<run>/evaluation/<name>/`: settings.json, the rows of each stage as JSONL, summary.json at the end."""

    path: Path
    _files: dict[str, RowFile] = field(default_factory=dict)

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
            try:
                before = json_file(written)
            except CheckpointError as error:
                raise CheckpointError(f"{error}\n{AGAIN}") from None
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
        """The rows a stage has written; what a kill left of a change is cut off. Raises CheckpointError, with the way
        out, when they are not those that were written."""
        return self._file(stage).read()

    def append(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to a stage, at once on disk."""
        self._unmark(stage)
        self._file(stage).append(rows)

    def rewrite(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the rows of a stage, for those that are put together from others."""
        self._unmark(stage)
        self._file(stage).rewrite(rows)

    def _file(self, stage: str) -> RowFile:
        return self._files.setdefault(stage, RowFile(self.path / f"{stage}.jsonl", AGAIN))

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
