"""`python -m dpo.plan`: whether a training command fits a GPU that need not be here, and what the run would choose."""

from __future__ import annotations

import os

from dpo.command.recipe import with_files
from dpo.config.entry import main as app
from dpo.config.schema import Config


def plan(config: Config) -> None:
    """Measure the run's worst micro-batch on tensors without contents, and print one screen."""
    # Tensors without contents and a real card do not go together.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from dpo.records.quiet import quiet

    quiet()
    from dpo.planning.measure import measure
    from dpo.planning.remedies import remedies
    from dpo.planning.show import show, show_remedy

    found = measure(config)
    print(show(config, found), flush=True)
    if not found.fits:
        for words, changed in remedies(config, found):
            print(show_remedy(words, measure(changed), found), flush=True)


def main() -> None:
    """Compose, parse and plan; exits with the code of the outcome."""
    app("config", Config, plan, files=with_files)


if __name__ == "__main__":
    main()
