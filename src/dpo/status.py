"""`python -m dpo.status`: what the runs and sweeps under outputs/ are doing, at once and without torch."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dpo.config.entry import main as app
from dpo.config.evaluation import Status, check_ranges, register
from dpo.config.roots import outputs_root
from dpo.errors import ConfigError
from dpo.pages.tables import clock, to_table
from dpo.records.overview import RunStatus, as_json, find_runs, run_status
from dpo.records.terminal import terminal
from dpo.streams import clean, reader_left

STYLES = {"running": "cyan", "complete": "green", "elsewhere": "yellow"}


def status(config: Status) -> None:
    """Print the runs under `config.root`; with `watch`, again every `every` seconds until Ctrl-C."""
    check_ranges(config)
    root = Path(config.root).expanduser() if config.root else outputs_root()
    if config.root and not root.is_dir():
        raise ConfigError(f"root={config.root}: no such folder")
    console = terminal()
    if config.json:
        for run in _look(root, config.limit)[0]:
            sys.stdout.write(as_json(run) + "\n")
    elif not config.watch:
        console.print(_view(root, config.limit))
    else:
        _watch(console, root, config)


def _watch(console: Console, root: Path, config: Status) -> None:
    try:
        if not console.is_terminal:
            while not reader_left():
                console.print(_view(root, config.limit))
                time.sleep(config.every)
            return
        with Live(_view(root, config.limit), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(config.every)
                live.update(_view(root, config.limit), refresh=True)
    except KeyboardInterrupt:
        return


def _look(root: Path, limit: int | None) -> tuple[list[RunStatus], int]:
    folders = find_runs(root) if root.is_dir() else []
    return [run_status(folder) for folder in folders[:limit]], len(folders)


def _view(root: Path, limit: int | None) -> Group:
    """The table, a line a failure's reason, and the counts a sweep adds up to."""
    runs, total = _look(root, limit)
    if not runs:
        return Group(Text(f"no runs under {root}"))
    rows = []
    for run in runs:
        steps = "" if run.step is None or run.max_steps is None else f"{run.step}/{run.max_steps}"
        best = "" if run.best_accuracy is None else f"{run.best_accuracy:.0%} at {run.best_step}"
        rows.append(
            [
                str(run.folder.relative_to(root)) if run.folder != root else str(root),
                run.state,
                steps,
                "" if run.eta is None else clock(run.eta),
                "" if run.loss is None else f"{run.loss:.4f}",
                best,
                run.evaluated or "",
            ]
        )
    table = to_table(
        ["run", "state", "step", "left", "loss", "best dev accuracy", "evaluated"],
        rows,
        spare=("loss", "left", "best dev accuracy"),
        left=("state", "evaluated"),
        styles=[STYLES.get(run.state, "red") for run in runs],
    )
    notes = [
        Text(clean(f"{run.folder.relative_to(root) if run.folder != root else root}: {run.note}"), overflow="fold")
        for run in runs
        if run.note
    ]
    return Group(
        table, *notes, *_sweeps(runs), *([Text(f"{total - len(runs)} more: limit=null")] if total > len(runs) else [])
    )


def _sweeps(runs: list[RunStatus]) -> list[Text]:
    """One line a sweep: how many of its jobs are in which state."""
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        if run.parent:
            states = counts.setdefault(run.parent, {})
            states[run.state] = states.get(run.state, 0) + 1
    return [
        Text(clean(f"sweep {Path(sweep).name}: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))))
        for sweep, states in counts.items()
    ]


def main() -> None:
    """Compose, parse and show."""
    flags = {"--watch": "watch=true", "--json": "json=true"}
    sys.argv[1:] = [flags.get(argument, argument) for argument in sys.argv[1:]]
    register()
    app("status", Status, status, positional="root")


if __name__ == "__main__":
    main()
