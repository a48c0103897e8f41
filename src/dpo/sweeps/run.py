"""A multirun: a folder, a task a job, a launcher that runs what is missing, and at the end the answer. No torch."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dpo.config.hardware import Parallel
from dpo.config.identity import Role, flat, role
from dpo.config.parse import plain
from dpo.config.roots import outputs_root
from dpo.config.schema import Config
from dpo.config.sweeps import Grid
from dpo.errors import ConfigError, DpoError, Interrupted
from dpo.pages.defaults import composed
from dpo.sweeps.files import ending, label_of, read_job, read_sweep, spanning, word, write_sweep
from dpo.sweeps.launchers import LAUNCHERS
from dpo.sweeps.task import Task


class JobsFailed(DpoError):
    """Some jobs of a sweep did not complete; each is named with its exit code and reason."""


@dataclass(frozen=True)
class Sweep:
    """The sweep's folder, the keys its jobs differ in, and its jobs: config, swept values and task of each."""

    root: Path
    keys: list[str]
    evaluation: str | None
    configs: list[Config]
    values: list[dict[str, Any]]
    tasks: list[Task]


def run_sweep(grid: Grid[Config]) -> None:
    """Run what is missing or failed of a sweep, then write its answer; raises JobsFailed when not all complete.

    Every config has been checked before this is called. The same command goes on in the same folders.
    """
    sweep = lay_out(grid)
    root = sweep.root
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):
            _run(sweep, grid)
    except Timeout:
        raise ConfigError(f"{root}: another process is running this sweep") from None
    from dpo.sweeps.report import report_sweep  # numpy is only needed here

    report_sweep(root)
    jobs = {job.folder.name: job for job in read_sweep(root).jobs}
    mine = [jobs[task.name] for task in sweep.tasks]
    failed = [f"{job.label}: {ending(job)}; see {job.folder}.log" for job in mine if not job.complete]
    if failed:
        raise JobsFailed("\n".join([f"{len(failed)} of {len(mine)} jobs did not complete", *failed]))


def _run(sweep: Sweep, grid: Grid[Config]) -> None:
    tasks, root = sweep.tasks, sweep.root
    listed = [
        {"label": task.label, "folder": task.name, "values": values}
        for task, values in zip(tasks, sweep.values, strict=True)
    ]
    write_sweep(root, sweep.keys, sweep.evaluation, listed)
    left = [task for task in tasks if not task.done()]
    done = f", {len(tasks) - len(left)} complete already" if len(left) < len(tasks) else ""
    print(f"sweep directory {root}, {len(tasks)} jobs{done}", flush=True)
    try:
        if left:
            configs = [config for config, task in zip(sweep.configs, tasks, strict=True) if task in left]
            LAUNCHERS[grid.launcher](left, configs, grid.settings, sweep.evaluation)
    except Interrupted:
        states = [read_job(root, job, sweep.evaluation) for job in listed]
        complete = sum(job.complete for job in states)
        print(f"interrupted: {complete} of {len(states)} jobs complete; the same command continues", file=sys.stderr)
        raise


def lay_out(grid: Grid[Config]) -> Sweep:
    """Folders and tasks. Folders are named by hashes of what they hold, so a grown grid renames none."""
    rows = [flat(plain(config)) for config, _ in grid.jobs]
    order = [key for _, overrides in grid.jobs for key in (o.lstrip("+~").partition("=")[0] for o in overrides)]
    known = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in known if any(row.get(key) != rows[0].get(key) for row in rows)]

    def place(key: str) -> tuple[int, str]:
        # `lora=lora lora.rank=2,4`: the key itself counts before the group it is of.
        owners = [own for own in order if key == own] or [own for own in order if key.startswith(f"{own}.")]
        return (order.index(owners[0]) if owners else len(order)), key

    # In the order of the command: the first varies slowest.
    keys.sort(key=place)
    if not keys and len(rows) > 1:
        raise ConfigError("all jobs of this sweep have the same settings")
    first = grid.jobs[0][0]
    base = {key: value for key, value in rows[0].items() if key not in keys and role(key) is Role.what}
    root = (outputs_root() / "sweeps" / f"{first.name}-{_hash([base, sorted(keys)])}").absolute()
    evaluation, evaluate = _evaluation(first)
    shown = spanning(keys, [{key: row.get(key) for key in keys} for row in rows])
    values, tasks = [], []
    for (config, overrides), row in zip(grid.jobs, rows, strict=True):
        mine = {key: row.get(key) for key in keys}
        # Sorted: the order of the words on the command line must not rename a folder.
        ordered = dict(sorted(mine.items()))
        words = (f"{key.rpartition('.')[2]}{word(value)}" for key, value in ordered.items() if key in row)
        short = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", text) for text in words)[:80]
        name = f"{short or 'job'}-{_hash(ordered)}"
        hardware = config.hardware
        gpus = 1 if hardware.parallel is Parallel.none else hardware.processes
        tasks.append(
            Task(
                label_of({key: mine[key] for key in shown}) or "job",
                root,
                name,
                tuple(overrides),
                evaluation,
                evaluate,
                gpus,
            )
        )
        values.append(mine)
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError("two jobs of this sweep have the same settings")
    return Sweep(root, keys, evaluation, [config for config, _ in grid.jobs], values, tasks)


def _evaluation(config: Config) -> tuple[str | None, tuple[str, ...]]:
    """Name of the jobs' evaluation and the words that ask for it, checked as `dpo.evaluate` would check them.

    The name hangs on what is asked, so that other settings make another evaluation and not a mixture.
    """
    sweep = config.sweep
    if not sweep.evaluate:
        return None, ()
    from dpo.config.evaluation import Evaluate, check_ranges, register

    register()
    # Of the first job's dataset: all jobs are asked the same.
    judge = sweep.judge or config.dataset.judges
    evaluation = {"max_new_tokens": config.dataset.max_new_tokens, **sweep.evaluation}
    name = f"sweep-{_hash([evaluation, judge])}"
    # `show` is for the terminal of a single evaluation.
    words = [f"evaluation.{key}={_literal(value)}" for key, value in {**evaluation, "show": 0}.items()]
    words += [f"evaluation.name={name}", f"judge=[{','.join(judge)}]"]
    try:
        asked = composed("evaluate", Evaluate, [*words, "run=x"])
        check_ranges(asked.evaluation, "sweep.evaluation.")
    except ConfigError as error:
        raise ConfigError(f"sweep.evaluation: {error}") from None
    return name, tuple(words)


def _literal(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) and not re.fullmatch(r"\w+", value) else json.dumps(value).strip('"')


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
