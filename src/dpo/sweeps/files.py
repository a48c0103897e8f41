"""A sweep as it lies on disk: its jobs, the truthful state of each, and what each left. Imports no torch."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import write_sealed
from dpo.records.process import is_alive
from dpo.records.read import RunFiles, check_evaluation, json_file, of_run, read_run
from dpo.streams import clean

Row = dict[str, Any]
LOG_BYTES = 65536
INTERRUPTED = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """The latest process of a job: train or evaluate, its exit code once it has ended, and which process it is."""

    phase: str
    exit_code: int | None
    host: str
    pid: int
    pid_started: float
    pid_mark: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs on this machine."""
        return self.exit_code is None and is_alive(self.__dict__)

    @property
    def elsewhere(self) -> bool:
        """Whether it was started on another machine and has not been seen to end, so nothing can be said from here."""
        return self.exit_code is None and self.host != socket.gethostname()


@dataclass(frozen=True)
class JobFiles:
    """One job: its swept values, state, and why it ended so. `summary` is that of the sweep's evaluation."""

    label: str
    values: Row
    folder: Path
    state: str
    exit_code: int | None
    reason: str | None
    run: RunFiles | None
    summary: Row | None

    @property
    def complete(self) -> bool:
        """Whether it has done all that was asked."""
        return self.state == "complete"


@dataclass(frozen=True)
class SweepFiles:
    """A sweep: the keys its jobs differ in, in the order they vary, the name of its evaluation, and its jobs."""

    folder: Path
    keys: list[str]
    evaluation: str | None
    jobs: list[JobFiles]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / "sweep.json").is_file()


def write_sweep(root: Path, keys: list[str], evaluation: str | None, jobs: list[Row]) -> None:
    """Write sweep.json; jobs that an earlier, smaller or larger grid of the same keys left stay listed, and the day the
    sweep began stays its date.

    `jobs`: label, folder (its name) and values of each.
    """
    before = json_file(root / "sweep.json")
    known = {job["folder"]: job for job in before.get("jobs", [])}
    known |= {job["folder"]: job for job in jobs}
    date = before.get("date") or _today()
    found = {"keys": keys, "evaluation": evaluation, "date": date, "jobs": list(known.values())}
    write_sealed(root / "sweep.json", found)


def date_of(root: Path) -> str:
    """The date that chat templates of all jobs print: another one would be another dataset."""
    return str(json_file(root / "sweep.json").get("date") or _today())


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def read_sweep(root: Path) -> SweepFiles:
    """Read a sweep; raises ConfigError when the folder is none."""
    if not is_sweep(root):
        raise ConfigError(f"{root}: no sweep.json in it, so it is not a sweep's folder")
    found = json_file(root / "sweep.json")
    if "jobs" not in found:
        raise ConfigError(f"{root}/sweep.json: not readable as JSON")
    jobs = [read_job(root, job, found["evaluation"]) for job in found["jobs"]]
    return SweepFiles(root, found["keys"], found["evaluation"], jobs)


def read_job(root: Path, job: Row, evaluation: str | None) -> JobFiles:
    """One job as it stands now; one whose files are damaged says so in its place and leaves the others alone."""
    folder = root / job["folder"]
    summary: Row = {}
    try:
        run = read_run(folder) if (folder / "run.json").exists() else None
        if evaluation and run is not None:
            summary = of_run(folder / "evaluation" / evaluation / "summary.json", run.record, expected=False)
            check_evaluation(folder, evaluation, summary)
    except (CheckpointError, ConfigError) as error:
        why = f"{str(error).splitlines()[0].removeprefix(f'{folder}/')}; move the folder away to run this job again"
        return JobFiles(job["label"], job["values"], folder, "damaged", error.exit_code, why, None, None)
    state, code, reason = _state(root, job["folder"], run, bool(summary) or evaluation is None)
    return JobFiles(job["label"], job["values"], folder, state, code, reason, run, summary or None)


def write_outcome(root: Path, name: str, outcome: Outcome) -> None:
    """Keep a job's latest process beside its folder."""
    write_sealed(root / f"{name}.json", outcome.__dict__)


def read_outcome(root: Path, name: str) -> Outcome | None:
    """A job's latest process, None before its first, or where what it left is damaged: the run's own record decides."""
    try:
        kept = json_file(root / f"{name}.json")
        return Outcome(**kept) if kept else None
    except (CheckpointError, TypeError):
        return None


def _state(root: Path, name: str, run: RunFiles | None, evaluated: bool) -> tuple[str, int | None, str | None]:
    """(state, exit code, reason). The run's own record comes first; the outcome tells what a run could not write."""
    last = read_outcome(root, name)
    code = last.exit_code if last else None
    if last is not None and last.elsewhere and not (run and run.state == "complete" and evaluated):
        return "elsewhere", None, f"on {last.host}"
    if run is None:
        if last is None:
            return "waiting", None, None
        if last.alive:
            return "starting", None, None
        return _ended(code), code, _why(root, name, code)
    if run.state == "killed":
        step = run.record.get("step")
        where = f"at step {step}" if step is not None and step >= 0 else "before its first step"
        return "killed", code if code is not None and code < 0 else None, where
    if run.state != "complete":
        return run.state, run.record.get("exit_code"), run.record.get("reason")
    if evaluated:
        return "complete", 0, None
    if last is None or last.phase != "evaluate":
        return "not evaluated", None, None
    if last.alive:
        return "evaluating", None, None
    return f"evaluation {_ended(code)}", code, _why(root, name, code)


def _ended(code: int | None) -> str:
    """How a process ended that could not or would not say it; without an exit code nobody saw it end."""
    if code in INTERRUPTED:
        return "interrupted"
    return "killed" if code is None or code < 0 else "failed"


def _why(root: Path, name: str, code: int | None) -> str | None:
    """The last error in the job's log, which may have begun before it had a run directory."""
    if code is None:
        return "its process is gone"
    if code < 0 or code in INTERRUPTED:
        return None
    try:
        with (root / f"{name}.log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            lines = clean(file.read().decode(errors="replace")).splitlines()
    except OSError:
        return None
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    return next((line for line in reversed(lines) if re.match(r"\w", line)), None)


def ending(job: JobFiles) -> str:
    """`diverged (exit 5): loss is not finite at step 5`."""
    code = job.exit_code
    by = "" if code is None or code == 0 else f" (signal {-code})" if code < 0 else f" (exit {code})"
    return f"{job.state}{by}{f': {job.reason}' if job.reason else ''}"


def spanning(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The keys that tell the rows apart: not those another one decides, as an option its values, or a list of
    experiments everything. Of two that decide each other the first stays."""
    columns = [[str(row[key]) for row in rows] for key in keys]

    def decides(one: int, other: int) -> bool:
        return len(set(zip(columns[one], columns[other], strict=True))) == len(set(columns[one]))

    def decided(i: int) -> bool:
        return any(decides(j, i) and (j < i or not decides(i, j)) for j in range(len(keys)) if j != i)

    return [key for i, key in enumerate(keys) if not decided(i)]


def label_of(values: Row) -> str:
    """`beta 0.1, rank 16`: last parts of the keys, whole keys where those would not tell them apart."""
    short = [key.rpartition(".")[2] for key in values]
    names = [key if short.count(last) > 1 else last for key, last in zip(values, short, strict=True)]
    return ", ".join(f"{name} {word(value)}" for name, value in zip(names, values.values(), strict=True))


def word(value: Any) -> str:
    """A swept value as one writes it."""
    if isinstance(value, list):
        return "+".join(map(word, value))
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
