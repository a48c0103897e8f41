"""`python -m dpo.report run=DIR`: one self-contained page about a run."""

from __future__ import annotations

from pathlib import Path

from dpo.config.app import main as app
from dpo.config.evaluation import Report, check_ranges, register


def report(config: Report) -> Path:
    """Write the run's report.html and say where; returns its path."""
    check_ranges(config)
    from dpo.records.page_run import write_run_page

    path = write_run_page(Path(config.run).expanduser(), config.evaluation, config.show)
    print(path, flush=True)
    return path


def _body(config: Report) -> None:
    report(config)


def main() -> None:
    """Compose, parse and write the page; exits with the code of the outcome."""
    register()
    app("report", Report, _body, positional="run")


if __name__ == "__main__":
    main()
