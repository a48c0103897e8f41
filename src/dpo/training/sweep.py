"""A multirun on this machine: one process a job, each with its own truthful run directory. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.parse import plain
from dpo.config.schema import Config
from dpo.errors import ConfigError, DpoError, Interrupted
from dpo.records.files import write_json
from dpo.records.run import outputs_root, read_record, state_of
from dpo.training.interrupts import Interrupts


@dataclass(frozen=True)
class SweepJob:
    """One point of the grid: its checked config, its overrides, and the folder they give it."""

    config: Config
    overrides: list[str]
    label: str
    folder: Path


class JobsFailed(DpoError):
    """Some jobs of a sweep did not complete; each is named with its reason."""


def run_sweep(composed: list[tuple[Config, list[str]]]) -> None:
    """Run what is missing or unfinished of a sweep, in order; raises JobsFailed when not all complete.

    Every config has been checked before this is called. The same command goes on with the same folders.
    """
    root, jobs = plan(composed)
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "sweep.json", {"jobs": [{"label": j.label, "folder": j.folder.name} for j in jobs]})
    print(f"sweep directory {root}, {len(jobs)} jobs", flush=True)
    failed = []
    for number, job in enumerate(jobs, 1):
        began = time.monotonic()
        status, reason = _finished(job.folder) or _run(job, root)
        line = f"[{number}/{len(jobs)}] {job.label}: {status}"
        print(f"{line}, {time.monotonic() - began:.0f} s{f': {reason}' if reason else ''}", flush=True)
        if status != "complete":
            failed.append(f"{job.label}: {status}, {reason or 'see ' + str(job.folder) + '.log'}")
    if failed:
        raise JobsFailed("\n".join([f"{len(failed)} of {len(jobs)} jobs did not complete", *failed]))
    print(f"done: {root}", flush=True)


def plan(composed: list[tuple[Config, list[str]]]) -> tuple[Path, list[SweepJob]]:
    """The sweep's folder and its jobs. Folders are named by hashes of what they hold, so a grown grid renames none."""
    flat = [_flatten(plain(config)) for config, _ in composed]
    keys = sorted({key for one in flat for key in one if any(one[key] != other.get(key) for other in flat)})
    base = {key: value for key, value in flat[0].items() if key not in keys}
    name = composed[0][0].name
    root = outputs_root() / "sweeps" / f"{name}-{_hash([base, keys])}"
    jobs = []
    for (config, overrides), one in zip(composed, flat, strict=True):
        values = {key: one.get(key) for key in keys}
        label = " ".join(f"{key}={value}" for key, value in values.items())
        short = re.sub(r"[^A-Za-z0-9.=_-]+", "_", ",".join(f"{k.split('.')[-1]}={v}" for k, v in values.items()))[:80]
        jobs.append(SweepJob(config, overrides, label, root / f"{short}-{_hash(values)}"))
    if len({job.folder for job in jobs}) < len(jobs):
        raise ConfigError("two jobs of this sweep have the same settings")
    return root, jobs


def _finished(folder: Path) -> tuple[str, None] | None:
    if (folder / "run.json").is_file() and state_of(read_record(folder)) == "complete":
        return "complete", None
    return None


def _run(job: SweepJob, root: Path) -> tuple[str, str | None]:
    environment = {**os.environ, "DPO_RUN_FOLDER": str(job.folder), "DPO_SWEEP": root.name}
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = root / f"{job.folder.name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpo.train", *job.overrides],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            # Its own group: Ctrl-C reaches this process alone, which passes it on once.
            start_new_session=True,
        )
        try:
            with Interrupts():
                process.wait()
        except Interrupted:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if not (job.folder / "run.json").is_file():
        return "failed", f"exit code {process.returncode}, see {log}"
    record = read_record(job.folder)
    return state_of(record), record.get("reason")


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
