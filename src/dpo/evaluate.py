"""`python -m dpo.evaluate run=DIR`: is the trained policy better than the model it started from, how surely?"""

from __future__ import annotations

import sys
from pathlib import Path

from dpo.config.entry import main as app
from dpo.config.evaluation import Evaluate, check_ranges, register
from dpo.sweeps.orphan import end_with_the_sweep


def evaluate(config: Evaluate) -> Path:
    """Evaluate a run, or go on where an earlier evaluation stopped, and print the outcome; returns its folder."""
    check_ranges(config.evaluation, "evaluation.")
    from dpo.modeling.device import pin_one_gpu
    from dpo.records.naming import run_folder
    from dpo.records.quiet import quiet
    from dpo.records.run import read_record

    run = run_folder(config.run)
    config.run = str(run)
    read_record(run)
    print(f"evaluating {run}; loading", flush=True)
    pin_one_gpu()
    quiet()
    from dpo.evaluation.measure import measure
    from dpo.evaluation.show import show
    from dpo.evaluation.tracked import track_evaluation
    from dpo.pages.ending import end_evaluation, write_page

    try:
        folder = measure(config)
    except (KeyboardInterrupt, SystemExit):
        print(f"what is measured is kept in {run}; the same command goes on there", file=sys.stderr)
        raise
    track_evaluation(run, folder, write_page(run, folder.name))
    show(folder, config.evaluation.show)
    end_evaluation(run, folder.name)
    return folder


def _body(config: Evaluate) -> None:
    evaluate(config)


def main() -> None:
    """Compose, parse and evaluate; exits with the code of the outcome."""
    end_with_the_sweep()
    register()
    app("evaluate", Evaluate, _body, positional="run")


if __name__ == "__main__":
    main()
