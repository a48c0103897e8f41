"""Read what runs and evaluations left on disk. Everything here is read as data; nothing in it can run.

A directory stays readable: what an earlier version did not write is absent, and absent is shown as a dash.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo.config.plain_yaml import load_yaml
from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import check_seal, read_regular
from dpo.records.rows import MOST, check_rows
from dpo.records.run import check_text, read_record, state_of

Row = dict[str, Any]
DASH = "-"
"""What is shown where a value was not written."""


class Found(dict[str, Any]):
    """A JSON mapping as it was found; a key that is not in it reads as `ABSENT`."""

    def __missing__(self, key: str) -> Any:
        return ABSENT


class Absent(Found):
    """What was not written: empty, false, a dash in any text, and whatever is looked up in it is absent too."""

    def __str__(self) -> str:
        return DASH

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return DASH


ABSENT = Absent()


@dataclass(frozen=True)
class RunFiles:
    """A run directory as read: its record, truthful state, config, metrics by kind, ledger and data report."""

    folder: Path
    record: Row
    state: str
    config: Row
    train: list[Row]
    dev: list[Row]
    ledger: Row
    data: Row
    evaluations: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunFiles:
    """Read a run directory; files it does not have yet are empty. Raises ConfigError when it is no run directory,
    CheckpointError when something in it is damaged or another run's."""
    record, metrics = read_metrics(folder)
    check_text(folder / "config.yaml", record)
    names = [p.parent.name for p in folder.glob("evaluation/*/summary.json")]
    data = of_run(folder / "data.json", record)
    if metrics and record.get("id") and not data:
        # Without it nothing would know how few pairs the figures are of.
        raise CheckpointError(f"{folder / 'data.json'}: missing, and a run that has begun to train has one")
    return RunFiles(
        folder,
        record,
        state_of(record),
        config_of(folder),
        [row for row in metrics if row.get("kind") == "train"],
        [row for row in metrics if row.get("kind") == "eval"],
        of_run(folder / "ledger.json", record),
        data,
        sorted(names),
    )


def read_metrics(folder: Path) -> tuple[Row, list[Row]]:
    """run.json and the lines of metrics.jsonl, which are those it vouches for: all of them once the run has ended,
    before that those up to its last save. Raises CheckpointError when they are not."""
    record = read_record(folder)
    try:
        _check_metrics(folder, record)
    except CheckpointError:
        if (now := read_record(folder)) == record:
            raise
        # Between the two files the run has gone back to a checkpoint.
        record = now
        _check_metrics(folder, record)
    return record, json_lines(folder / "metrics.jsonl")


def _check_metrics(folder: Path, record: Row) -> None:
    if record.get("metrics"):
        way_out = "its curves cannot be trusted; train it again with resume=never"
        ended = record["status"] != "running"
        check_rows(folder / "metrics.jsonl", record["metrics"], "run.json", way_out, whole=ended)


def of_run(path: Path, record: Row, expected: bool = True) -> Row:
    """A file of the run that `record` is of; empty when there is none.

    Raises CheckpointError when it is damaged or another run's, or (`expected`) when a finished run lacks it.
    """
    found = json_file(path)
    if record.get("id") and found and found.get("run") != record["id"]:
        raise CheckpointError(f"{path}: not of this run, but a copy from another")
    if expected and record.get("id") and not found and record["status"] == "complete":
        raise CheckpointError(f"{path}: missing, and a run that has ended has one")
    return found


def config_of(folder: Path) -> Row:
    """A run's config.yaml as plain data. Interpolations stay text: a stranger's file must not reach the environment."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    found = load_yaml(path)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def read_summary(run: Path, name: str) -> Row:
    """summary.json of an evaluation; raises ConfigError, with the command that makes it, when there is none."""
    path = run / "evaluation" / name / "summary.json"
    if not path.exists():
        have = sorted(p.parent.name for p in run.glob("evaluation/*/summary.json"))
        raise ConfigError(
            f"{run}: no evaluation named {name}" + (f"; it has {', '.join(have)}" if have else "") + "\n"
            f"python -m dpo.evaluate {run}" + ("" if name == "test" else f" evaluation.name={name}")
        )
    try:
        return of_run(path, read_record(run))
    except CheckpointError as error:
        raise CheckpointError(f"{error}\npython -m dpo.evaluate {run} writes it anew from its rows") from None


def read_samples(run: Path, name: str) -> list[Row]:
    """samples.jsonl of an evaluation."""
    return read_rows(run, name, "samples")


def pick(samples: list[Row], count: int, seed: int) -> list[Row]:
    """`count` samples drawn by the seed alone: neither the best nor the worst are chosen."""
    return random.Random(seed).sample(samples, min(count, len(samples)))


def read_pairs(run: Path, name: str) -> list[Row]:
    """pairs.jsonl of an evaluation."""
    return read_rows(run, name, "pairs")


def read_rows(run: Path, name: str, stage: str) -> list[Row]:
    """The rows of a stage; raises CheckpointError when they are not those its summary was made from."""
    folder = run / "evaluation" / name
    marks = json_file(folder / "summary.json").get("rows") or {}
    check_evaluation(run, name, {"rows": {key: mark for key, mark in marks.items() if key == stage}})
    return json_lines(folder / f"{stage}.jsonl")


def check_evaluation(run: Path, name: str, summary: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the rows of an evaluation are those its summary was made from."""
    for stage, mark in (summary.get("rows") or {}).items():
        words = f"evaluation.name={name} evaluation.again=true"
        path = run / "evaluation" / name / f"{stage}.jsonl"
        check_rows(path, mark, "summary.json", f"python -m dpo.evaluate {run} {words} measures it anew")


def json_file(path: Path) -> Row:
    """A JSON mapping; empty when there is no such file. Raises CheckpointError when it is damaged or was edited.

    What a run leaves is written whole and renamed, so that a file which cannot be read was damaged.
    """
    try:
        found = json.loads(read_regular(path), object_hook=Found)
    except (FileNotFoundError, NotADirectoryError):
        return Found()
    except OSError as error:
        raise CheckpointError(f"{path}: not readable ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not readable as JSON") from None
    if not isinstance(found, Found):
        raise CheckpointError(f"{path}: holds no mapping")
    check_seal(path, found)
    return found


def json_lines(path: Path) -> list[Row]:
    """Rows of a JSONL file; a line torn by a kill or still being written is left out."""
    rows = []
    try:
        lines = read_regular(path, MOST).splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line, object_hook=Found)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
