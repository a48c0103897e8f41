"""`python -m dpo.plan`: whether a training command fits a GPU that need not be here, how long, and at what cost."""

from __future__ import annotations

import json
import os
import sys

from dpo.command.recipe import with_files
from dpo.config.entry import main as app
from dpo.config.schema import Config
from dpo.config.sweeps import Grid


def plan(config: Config, as_json: bool = False) -> None:
    """Measure the run's largest micro-batch on tensors without contents, and print one screen."""
    _plan([(config, [])], as_json)


def plan_sweep(grid: Grid[Config], as_json: bool = False) -> None:
    """The same for every job of a grid, and their sum."""
    _plan(grid.jobs, as_json)


def _plan(jobs: list[tuple[Config, list[str]]], as_json: bool) -> None:
    # Tensors without contents and a real card do not go together; nothing is fetched.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from dpo.records.quiet import quiet

    quiet()
    from dpo.planning.card import CannotFake
    from dpo.planning.cost import times_of
    from dpo.planning.grid import measured
    from dpo.planning.remedies import remedies, smallest_card
    from dpo.planning.rule import by_rule
    from dpo.planning.show import as_json as facts
    from dpo.planning.show import show, show_remedy, show_sum

    try:
        found = measured(jobs)
    except CannotFake as error:
        for config, _ in jobs:
            print(json.dumps(by_rule(config, str(error)).facts) if as_json else by_rule(config, str(error)))
        return
    times = [times_of(job.config, job.found) for job in found]
    if as_json:
        for job, each in zip(found, times, strict=True):
            print(json.dumps({"job": job.words, **facts(job.config, job.found, each)}))
        return
    for job, each in zip(found, times, strict=True):
        if job.words:
            print(job.words)
        print(show(job.config, job.found, each, smallest_card(job.found)), flush=True)
    if len(found) > 1:
        print(show_sum(found, times))
    elif not found[0].found.fits:
        for words, changed in remedies(found[0].config, found[0].found):
            print(show_remedy(words, measured([(changed, [])])[0].found, found[0].found), flush=True)


def main() -> None:
    """Compose, parse and plan; exits with the code of the outcome."""
    as_json = "--json" in sys.argv[1:]
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--json"]
    app(
        "config",
        Config,
        lambda config: plan(config, as_json),
        multirun=lambda grid: plan_sweep(grid, as_json),
        files=with_files,
    )


if __name__ == "__main__":
    main()
