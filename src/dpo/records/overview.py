"""What every run under a folder is doing, from its files alone. A run whose process is gone is never called running."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError, DpoError
from dpo.records.judged import fitting
from dpo.records.read import config_of, of_run, read_metrics
from dpo.records.run import read_record, state_of

Row = dict[str, Any]
# Folders of a run that hold no runs.
INSIDE = {"checkpoints", "adapter", "evaluation", "wandb", "merged"}
DEEPEST = 5
RECENT_STEPS = 20
FEWEST = 20  # held-out pairs or prompts; a share of fewer stands with what it is of


@dataclass(frozen=True)
class RunStatus:
    """One run. `eta` is in seconds, for running ones; `note` says why it ended or what it waits for."""

    folder: Path
    state: str
    step: int | None
    max_steps: int | None
    eta: float | None
    updated: float
    loss: float | None
    best_accuracy: float | None
    best_step: int | None
    evaluated: str | None
    note: str
    parent: str | None

    @property
    def failed(self) -> bool:
        """Whether it ended without reaching its last step."""
        return self.state not in ("running", "complete", "elsewhere")


def find_runs(root: Path) -> list[Path]:
    """Folders of runs under `root`, newest record first: those with a run.json, or with all that it should stand beside
    (a run does not vanish from the list with its record)."""
    found: list[tuple[float, Path]] = []
    base = len(root.parts)
    for folder, names, files in os.walk(root):
        path = Path(folder)
        record = "run.json" in {*files, *names}
        if record or ("config.yaml" in files and ("metrics.jsonl" in files or "checkpoints" in names)):
            found.append(((path / "run.json" if record else path).lstat().st_mtime, path))
            names.clear()
        elif len(path.parts) - base >= DEEPEST:
            names.clear()
        else:
            names[:] = [name for name in names if name not in INSIDE and not name.startswith(".")]
    return [path for _, path in sorted(found, reverse=True)]


def run_status(folder: Path, now: float | None = None) -> RunStatus:
    """Read one run; what is torn, foreign or nonsense in it is a state of its own, never an error: others stand there
    too."""
    now = time.time() if now is None else now
    try:
        return _read(folder, read_record(folder), now)
    except DpoError as error:
        why = str(error).splitlines()[0].removeprefix(f"{folder}/")
    except Exception as error:  # noqa: BLE001 - whatever a file holds, the table has to come
        why = f"its files hold what no run writes ({type(error).__name__}: {str(error)[:80]})"
    return RunStatus(folder, "unreadable", None, None, None, 0.0, None, None, None, None, why, None)


def _read(folder: Path, record: Row, now: float) -> RunStatus:
    try:
        record, metrics = read_metrics(folder)
        damaged = ""
    except CheckpointError as error:
        metrics, damaged = [], f"metrics damaged: {str(error).splitlines()[0].removeprefix(f'{folder}/')}"
    train = [row for row in metrics if row.get("kind") == "train" and "loss" in row]
    dev = [row for row in metrics if row.get("kind") == "eval" and "rewards/accuracies" in row]
    # At step 0 every pair is a tie.
    best = max((row for row in dev if number(row["step"]) > 0), key=lambda row: row["rewards/accuracies"], default=None)
    state, note = _state(record, now)
    step = max([0, int(number(record.get("step") or 0)), *(int(number(row["step"])) for row in train)])
    last = train[-1] if train else None
    most, parent = record.get("max_steps"), record.get("parent")
    return RunStatus(
        folder=folder,
        state=state,
        step=step,
        max_steps=None if most is None else int(number(most)),
        eta=_eta(train, record.get("max_steps"), now) if state == "running" else None,
        updated=max(number(record.get("updated") or 0), number(last["time"]) if last else 0.0),
        loss=number(last["loss"]) if last else None,
        best_accuracy=number(best["rewards/accuracies"]) if best else None,
        best_step=int(number(best["step"])) if best else None,
        evaluated=_evaluated(folder, record),
        note="; ".join(filter(None, (note, damaged))) or _doing(state, step, now, record, train),
        parent=None if parent is None else str(parent),
    )


def number(value: Any) -> float:
    """A figure of a run as it stands in a file; raises ValueError for what is none, or beyond any time or step."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise ValueError(f"{str(value)[:40]} is no figure")
    return float(value)


def _state(record: Row, now: float) -> tuple[str, str]:
    state = state_of(record)
    if record["status"] == "running" and record.get("host") != socket.gethostname():
        # Another machine's processes cannot be looked at from here, so neither running nor killed can be said.
        quiet = _ago(now - number(record.get("updated") or 0))
        return "elsewhere", f"on {record.get('host')}, last sign of life {quiet} ago"
    if state == "killed":
        return state, "its process is gone; the same command continues it"
    if state in ("complete", "running"):
        return state, ""
    return state, str(record.get("reason") or "")


def _doing(state: str, step: int, now: float, record: Row, train: list[Row]) -> str:
    if state != "running":
        return ""
    if not train:
        return "before its first step"
    pace = _pace(train)
    # Not since `updated`: that is renewed for as long as the process lives.
    silence = now - number(train[-1]["time"])
    return f"no step for {_ago(silence)}" if pace is not None and silence > max(60.0, 20 * pace) else ""


def _pace(train: list[Row]) -> float | None:
    """Seconds a step over the latest steps."""
    recent = [{name: number(row[name]) for name in ("step", "time")} for row in train[-RECENT_STEPS:]]
    steps = recent[-1]["step"] - recent[0]["step"]
    return (recent[-1]["time"] - recent[0]["time"]) / steps if steps > 0 else None


def _eta(train: list[Row], max_steps: Any, now: float) -> float | None:
    if not train or not isinstance(max_steps, int):
        return None
    pace = _pace(train)
    if pace is None:
        return None
    return max(0.0, (max_steps - number(train[-1]["step"])) * pace - (now - train[-1]["time"]))


def _evaluated(folder: Path, record: Row) -> str | None:
    """Short words of the newest evaluation: accuracy and the shares of the judges that fit the rows."""
    summaries = sorted(folder.glob("evaluation/*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not summaries:
        return None
    try:
        summary = of_run(summaries[-1], record)
        accuracy = summary["pairs"]["accuracy"]
        words = [f"accuracy {accuracy['value']:.0%}{_ends(accuracy)}"]
        for name in fitting(summary["judges"], config_of(folder)):
            judged = summary["judges"][name]
            before, after = judged["baseline"]["value"], judged["policy"]["value"]
            few = f" of {judged['difference']['n']}" if judged["difference"]["n"] < FEWEST else ""
            moved = f"{before:.0%} to {after:.0%}" if judged["decides"] else f"{after - before:+.2f}"
            words.append(f"{name} {moved}{few}")
    except DpoError:
        return "damaged"
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return ", ".join(words)


def _ends(share: Row) -> str:
    """The interval of a share over few, which alone would promise too much."""
    few = number(share["n"]) < FEWEST and share["low"] is not None
    return f" [{100 * share['low']:.0f}, {100 * share['high']:.0f}]" if few else ""


def _ago(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def as_json(status: RunStatus) -> str:
    """One line."""
    data = {**status.__dict__, "folder": str(status.folder)}
    return json.dumps(data, ensure_ascii=False)
