"""One way to name a run, in every verb: its folder, the name that `status` prints, the end of that, or the newest."""

from __future__ import annotations

import sys
from pathlib import Path

from dpo.config.nearest import nearest
from dpo.config.roots import outputs_root
from dpo.errors import ConfigError
from dpo.records.overview import find_runs, run_status

NEWEST = "newest"
SWEEP = "sweep.json"
SHOWN = 3


def run_folder(named: str, key: str = "run", sweeps: bool = False) -> Path:
    """The run directory that `named` means, or with `sweeps` a sweep's folder.

    What was not named whole is said on standard error. Raises ConfigError, with the nearest name, for what means none
    or several; a folder that holds no run is returned as it is, for who reads it to refuse.
    """
    path = Path(named).expanduser()
    if path.exists():
        return _at(path, key, sweeps)
    root = outputs_root()
    if named == NEWEST:
        return _newest(root, "no run named, and no complete one under")
    if (root / path).exists():
        return _at(root / path, key, sweeps)
    known = names(root)
    found = [name for name in known if Path(name).parts[-len(path.parts) :] == path.parts]
    if not found:
        near = nearest(path.name, [Path(name).name for name in known]) if known else ""
        raise ConfigError(f"{key}={named}: no such run{near}\nnames are those that python -m dpo.status prints")
    if len(found) > 1:
        raise ConfigError(f"{key}={named}: several are called so: {', '.join(found[:SHOWN])}; write one whole")
    return _said(_at(root / found[0], key, sweeps))


def names(root: Path) -> list[str]:
    """What runs and sweeps under `root` are called: their folders from there."""
    runs = find_runs(root) if root.is_dir() else []
    sweeps = [path.parent for path in sorted(root.glob(f"sweeps/*/{SWEEP}"))]
    return [str(folder.relative_to(root)) for folder in [*runs, *sweeps]]


def _at(path: Path, key: str, sweeps: bool) -> Path:
    """The run that is there, the one around it, or the newest one in it."""
    if (path / "run.json").exists():
        return path
    if (path / SWEEP).exists():
        if sweeps:
            return path
        jobs = ", ".join(job.name for job in find_runs(path)[:SHOWN])
        raise ConfigError(f"{key}={path}: a sweep; name one of its jobs" + (f", as {jobs}" if jobs else ""))
    around = next((folder for folder in path.absolute().parents if (folder / "run.json").is_file()), None)
    if around is not None:
        return _said(around)
    return _newest(path, "no complete run under") if find_runs(path) else path


def _newest(root: Path, none: str) -> Path:
    for folder in find_runs(root) if root.is_dir() else []:
        if run_status(folder).state == "complete":
            print(f"newest complete run: {folder}", file=sys.stderr)
            return folder
    raise ConfigError(f"{none} {root}")


def _said(folder: Path) -> Path:
    print(f"run: {folder}", file=sys.stderr)
    return folder
