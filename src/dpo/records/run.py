"""The run directory: created or found again, its state always truthful, its metrics one line a logged step."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import check_seal, read_regular, write_sealed, write_text
from dpo.records.metrics import Metrics
from dpo.records.owner import Lost, Owner
from dpo.records.process import is_alive, is_alive_elsewhere, process_mark
from dpo.records.redaction import redact
from dpo.records.rows import Mark, content

METRICS = "metrics.jsonl"
# What continuing and showing a run read from a run.json that may be damaged.
FORM: dict[str, tuple[type, ...]] = {
    "attempts": (list,),
    "fingerprints": (dict,),
    "metrics": (dict,),
    "step": (int, float, type(None)),
    "max_steps": (int, type(None)),
    "token_budget": (int, type(None)),
    "at_once": (int, type(None)),
}
RECORDED = "fingerprints device processes revision adapter_revision built end_of_turn seed parents".split()
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "hydra-core", "wandb")
LEFTOVER_SECONDS = 3600.0


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a folder; raises ConfigError when there is none, CheckpointError when it is torn or no record."""
    path = folder / "run.json"
    try:
        record = json.loads(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        runs = sorted(path.parent.name for path in folder.glob("*/run.json"))
        hint = f"\nname one of the runs in it: {', '.join(runs[:6])}" if runs else ""
        raise ConfigError(f"{folder}: no run.json in it, so it is not a run directory{hint}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not readable ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not readable as JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise CheckpointError(f"{path}: not a run's record")
    for key, kinds in FORM.items():
        if key in record and not isinstance(record[key], kinds):
            raise CheckpointError(f"{path}: not a run's record: {key} is damaged")
    if not all(isinstance(attempt, dict) for attempt in record.get("attempts", [])):
        raise CheckpointError(f"{path}: not a run's record: attempts is damaged")
    check_seal(path, record)
    return record


def check_text(path: Path, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless config.yaml is as the run of `record` wrote it."""
    known = record.get("config_sha256")
    if known and hashlib.sha256(content(path)).hexdigest() != known:
        raise CheckpointError(f"{path}: damaged or edited after the run wrote it; its hash in run.json is another")


def state_of(record: Mapping[str, Any]) -> str:
    """The truthful state: a run whose process is gone is `killed`, whatever its file still says."""
    status = str(record["status"])
    alive = is_alive(record) or is_alive_elsewhere(record)
    return "killed" if status == "running" and not alive else status


@dataclass(frozen=True)
class Facts:
    """What a start writes into its run directory: the config as YAML, its fingerprint, the seed."""

    config_yaml: str
    fingerprint: str
    seed: int


@dataclass
class Run:
    """One run directory, written by this process. `owner` is its hold on it; without one, another process has it."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    owner: Owner | None = None
    config_yaml: str = ""
    recorded: dict[str, Any] = field(default_factory=dict)
    """What an earlier attempt recorded of itself; it stays on disk until this one is known to continue it."""
    metrics: Metrics | None = None

    def __post_init__(self) -> None:
        self._writing = threading.RLock()
        self._written = "{}"

    @classmethod
    def begin(cls, root: Path, name: str | None, facts: Facts) -> Run:
        """A new run directory under `root`: `name`, or, when None, the first free <time>-<fingerprint>.

        Written aside and renamed, which fails where there is something already: a run directory never lacks its
        run.json, and of two starts each gets its own. Raises FileExistsError when `name` is taken.
        """
        now = time.time()
        sweep_up(root, now)
        aside = root / f".starting-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        run = cls(aside, {"id": uuid.uuid4().hex, "created": now, "attempts": [], "fingerprints": {}}, Owner(aside))
        try:
            run._attempt(facts, now)
            run.folder = run._named(root, name, facts, now)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return run

    def _named(self, root: Path, name: str | None, facts: Facts, now: float) -> Path:
        """Rename what was written aside."""
        for number in itertools.count():
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now + number))
            folder = root / (name or f"{stamp}-{facts.fingerprint}")
            try:
                self.folder.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if name is not None:
                    raise FileExistsError(errno.EEXIST, "is there already", str(folder)) from None
            else:
                return folder
        raise AssertionError("unreachable")

    @classmethod
    def go_on(cls, folder: Path, owner: Owner | None, facts: Facts) -> Run:
        """Continue a run that this process owns, or (`owner` None) that its parent has just begun or continued."""
        run = cls(folder, read_record(folder), owner)
        for key in ("attempts", "fingerprints"):
            if key not in run.record:
                raise CheckpointError(f"{folder}/run.json: not a run's record: {key} is missing")
        if owner is None:
            run.record["attempts"].pop()
        else:
            for left in folder.glob(".*.tmp"):  # by a write that was killed: all of the folder is ours now
                left.unlink()
        run.record.setdefault("id", uuid.uuid4().hex)
        run.recorded = {key: run.record[key] for key in RECORDED if key in run.record}
        run._attempt(facts, time.time())
        return run

    def _attempt(self, facts: Facts, now: float) -> None:
        record, process = self.record, psutil.Process()
        if record["attempts"] and record["attempts"][-1].get("ended") is None:
            record["attempts"][-1] |= {"ended": record.get("updated", now), "status": "killed"}
        record |= {
            "status": "running",
            "reason": None,
            "exit_code": None,
            "command": redact(" ".join([Path(sys.executable).name, *sys.orig_argv[1:]])),
            "owner": self.owner.name if self.owner is not None else record.get("owner"),
            "pid": process.pid,
            "pid_started": process.create_time(),
            "pid_mark": process_mark(process.pid),
            "host": socket.gethostname(),
            "started": now,
            "updated": now,
            "step": record.get("step", 0),
            "max_steps": record.get("max_steps"),
            "seed": facts.seed,
            "git": git_state(),
            "versions": {"python": platform.python_version(), **_versions()},
            "parent": os.environ.get("DPO_SWEEP"),
        }
        record["fingerprints"] = {"config": facts.fingerprint}
        record["attempts"].append({"started": now, "ended": None, "status": "running", "from_step": 0})
        self.config_yaml = facts.config_yaml
        if not self.recorded:
            self._write_config()
        self._write()

    def _write_config(self) -> None:
        self.record["config_sha256"] = hashlib.sha256(self.config_yaml.encode()).hexdigest()
        write_text(self.folder / "config.yaml", self.config_yaml)

    def _write(self) -> None:
        with self._writing:
            self.record["updated"] = time.time()
            if self.metrics is not None:
                self.record["metrics"] = self.metrics.mark()
            self._written = json.dumps(self.record | self.recorded)
            write_sealed(self.folder / "run.json", json.loads(self._written))

    def save(self) -> None:
        """Write run.json; raises Lost when the run has been taken over."""
        self._check_owner()
        self._write()

    def sign_of_life(self) -> None:
        """Renew `updated` in run.json, from any thread: what the record holds by now is for `save` to write."""
        with self._writing:
            self._check_owner()
            write_sealed(self.folder / "run.json", json.loads(self._written) | {"updated": time.time()})

    def _check_owner(self) -> None:
        # Another machine, which the lock may not reach, believed this process dead: one that was suspended, say.
        try:
            found = read_record(self.folder)
        except (ConfigError, CheckpointError):
            return  # damaged by others; written anew
        if found.get("owner") != self.record.get("owner"):
            raise Lost(f"{self.folder}: process {found.get('pid')} on {found.get('host')} has taken this run over")

    def update(self, **values: Any) -> None:
        """Change top-level keys of run.json and write it."""
        self.record |= values
        self.save()

    def finish(self, status: str, reason: str | None, exit_code: int) -> None:
        """The last word: complete, interrupted, failed, diverged, out_of_memory, disk_full. The run is free then."""
        self.record["attempts"][-1] |= {"ended": time.time(), "status": status}
        self.update(status=status, reason=redact(reason) if reason else None, exit_code=exit_code)
        if self.owner is not None:
            self.owner.release()

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        assert self.metrics is not None
        self.metrics.log(kind, step, values)

    def evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has the evaluation of `step`."""
        return Metrics(self.folder / METRICS).evaluated(step)

    def continue_at(self, step: int, mark: Mark, anyway: bool, say: Callable[[str], None]) -> None:
        """Continue at `step`, whose checkpoint remembers `mark` (-1 and no lines for a start at 0): later metrics are
        dropped, as they will be written again, and what this attempt found of itself is recorded.

        Raises CheckpointError, leaving the record of the earlier attempt, when metrics.jsonl is not what it was.
        """
        metrics = Metrics(self.folder / METRICS)
        drop = metrics.rewind(step, mark, self.record.get("metrics") or {}, anyway, say)
        self.metrics, self.recorded = metrics, {}
        self.record["attempts"][-1]["from_step"] = step
        self._write_config()
        # The mark first: it fits the file before the lines are dropped and after.
        self.update(step=step)
        drop()


def sweep_up(root: Path, now: float) -> None:
    """Remove what starts that were killed before they had a run directory left under `root`."""
    for left in root.glob(".starting-*"):
        with contextlib.suppress(OSError):
            if now - left.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(left)


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
