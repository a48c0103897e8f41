"""The run directory: created or found again, its state always truthful, its metrics one line a logged step."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import write_json, write_text
from dpo.records.redaction import redact

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "hydra-core", "wandb")


def outputs_root() -> Path:
    """Where runs land: $DPO_OUTPUTS, else outputs/ of the current folder."""
    return Path(os.environ.get("DPO_OUTPUTS", "outputs"))


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a run.json still lives; a reused pid is told apart by when it started."""
    if record.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(record["pid"]))
        if record.get("pid_mark") is not None:
            same = process_mark(process.pid) == record["pid_mark"]
        else:
            same = abs(process.create_time() - float(record["pid_started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def process_mark(pid: int) -> str | None:
    """Boot and start tick of a process, which no other has; None off Linux. A start time by the clock moves with it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a folder; raises CheckpointError when it is missing or torn."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        runs = sorted(path.parent.name for path in folder.glob("*/run.json"))
        hint = f"\nname one of the runs in it: {', '.join(runs[:6])}" if runs else ""
        raise ConfigError(f"{folder}: no run.json in it, so it is not a run directory{hint}") from None
    except ValueError:
        raise CheckpointError(f"{folder}/run.json: not readable as JSON") from None
    assert isinstance(record, dict)
    return record


def state_of(record: Mapping[str, Any]) -> str:
    """The truthful state: a run whose process is gone is `killed`, whatever its file still says."""
    status = str(record["status"])
    return "killed" if status == "running" and not is_alive(record) else status


def choose_folder(name: str, fingerprint: str, resume: str) -> tuple[Path, bool]:
    """Decide the run directory: (folder, whether it is continued).

    auto: the newest unfinished run of this name and fingerprint that no live process writes to; never: a new
    one; else the folder given.
    """
    if resume not in ("auto", "never"):
        folder = Path(resume).expanduser()
        record = read_record(folder)
        if record["status"] == "running" and is_alive(record):
            raise ConfigError(f"resume={resume}: process {record['pid']} is still running it")
        if record["status"] == "complete":
            raise ConfigError(f"resume={resume}: this run is complete; use resume=never for a new one")
        return folder, True
    root = outputs_root() / name
    if resume == "auto":
        for folder in sorted(root.glob(f"*-{fingerprint}"), reverse=True):
            record = read_record(folder)
            if state_of(record) not in ("complete", "running"):
                return folder, True
    return new_folder(root, fingerprint), False


def new_folder(root: Path, fingerprint: str) -> Path:
    """A free <root>/<time>-<fingerprint>; two starts in one second get different seconds."""
    stamp = time.time()
    while True:
        folder = root / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(stamp))}-{fingerprint}"
        if not folder.exists():
            return folder
        stamp += 1


@dataclass
class Run:
    """One run directory, written by this process."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, continued: bool, config_yaml: str, fingerprint: str, seed: int) -> Run:
        """Start (or continue) writing: config.yaml and run.json with a new attempt."""
        now = time.time()
        fresh: dict[str, Any] = {"created": now, "attempts": [], "fingerprints": {}}
        record = read_record(folder) if continued else fresh
        if record["attempts"] and record["attempts"][-1].get("ended") is None:
            record["attempts"][-1] |= {"ended": record.get("updated", now), "status": "killed"}
        process = psutil.Process()
        record |= {
            "status": "running",
            "reason": None,
            "exit_code": None,
            "command": redact(" ".join([Path(sys.executable).name, *sys.orig_argv[1:]])),
            "pid": process.pid,
            "pid_started": process.create_time(),
            "pid_mark": process_mark(process.pid),
            "host": socket.gethostname(),
            "started": now,
            "updated": now,
            "step": record.get("step", 0),
            "max_steps": record.get("max_steps"),
            "seed": seed,
            "git": git_state(),
            "versions": {"python": platform.python_version(), **_versions()},
            "parent": os.environ.get("DPO_SWEEP"),
        }
        record["fingerprints"]["config"] = fingerprint
        record["attempts"].append({"started": now, "ended": None, "status": "running", "from_step": 0})
        if continued:
            write_text(folder / "config.yaml", config_yaml)
            run = cls(folder, record)
            run.save()
            return run
        # Written aside and renamed: a run directory never lacks its run.json.
        aside = folder.with_name(f".starting-{process.pid}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_text(aside / "config.yaml", config_yaml)
        write_json(aside / "run.json", record)
        aside.rename(folder)
        return cls(folder, record)

    def save(self) -> None:
        """Write run.json."""
        self.record["updated"] = time.time()
        write_json(self.folder / "run.json", self.record)

    def update(self, **values: Any) -> None:
        """Change top-level keys of run.json and write it."""
        self.record |= values
        self.save()

    def finish(self, status: str, reason: str | None, exit_code: int) -> None:
        """The last word: complete, interrupted, failed, diverged, out_of_memory, disk_full."""
        self.record["attempts"][-1] |= {"ended": time.time(), "status": status}
        self.update(status=status, reason=redact(reason) if reason else None, exit_code=exit_code)

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        line = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()

    def evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has the evaluation of `step`."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return any(_step(line) == step and json.loads(line).get("kind") == "eval" for line in lines)

    def rewind(self, step: int) -> None:
        """Drop metrics after `step`: a run that continues there will write them again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.record["attempts"][-1]["from_step"] = step
        self.update(step=step)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line torn by a kill
        return float("inf")


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, when the package runs from a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
