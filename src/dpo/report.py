"""`python -m dpo.report run=DIR` or `sweep=DIR`: one self-contained page about a run, or about a whole sweep."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dpo.config.entry import main as app
from dpo.config.evaluation import Report, check_ranges, register
from dpo.sweeps.files import is_sweep


def report(config: Report) -> Path:
    """Write report.html of the run, or of the sweep and its answer beside it, and say where; returns its path."""
    check_ranges(config)
    from dpo.records.naming import run_folder

    folder = run_folder(config.run, sweeps=True)
    if is_sweep(folder):
        from dpo.sweeps.report import report_sweep

        return report_sweep(folder)
    from dpo.pages.run import write_run_page

    path = write_run_page(folder, config.name, config.show)
    print(path, flush=True)
    return path


def _body(config: Report) -> None:
    report(config)


def main() -> None:
    """Compose, parse and write the page; exits with the code of the outcome."""
    # To Hydra `sweep` is the group of conf/sweep, also here; which kind a folder is shows in what lies there.
    sys.argv[1:] = [re.sub(r"^sweep=", "run=", argument) for argument in sys.argv[1:]]
    register()
    app("report", Report, _body, positional="run")


if __name__ == "__main__":
    main()
