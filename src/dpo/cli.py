"""`dpo-train VERB ...`: every verb of this project under one command.

A verb is `python -m dpo.VERB` and takes the same overrides; beside them `train`, `prepare` and `init` take the flags
of dpo.command.classic. Nothing heavy is imported before the verb asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo.config.nearest import nearest
from dpo.errors import ConfigError


@dataclass(frozen=True)
class Verb:
    """A module with a `main()` that reads sys.argv; `runs`: the key that bare words, which name runs, go to."""

    module: str
    does: str
    runs: str | None = None


VERBS = {
    "init": Verb("dpo.init", "write a config, requirements and a script to start from"),
    "doctor": Verb("dpo.doctor", "check this machine: packages, GPU, kernels, hub, W&B; with fixes"),
    "prepare": Verb("dpo.prepare", "load, check and tokenize preference pairs (also: prepare-dataset)"),
    "synthesize": Verb("dpo.synthesize", "answers from a generator, ranked by a judge, as pairs"),
    "plan": Verb("dpo.plan", "whether a training command fits a GPU that need not be here"),
    "train": Verb("dpo.train", "train an adapter; -m for a grid"),
    "status": Verb("dpo.status", "what the runs are doing"),
    "evaluate": Verb("dpo.evaluate", "a run against the model it started from", runs="run"),
    "compare": Verb("dpo.compare", "runs against each other", runs="runs"),
    "judge": Verb("dpo.judge", "judge answers again, by other judges", runs="run"),
    "report": Verb("dpo.report", "one self-contained page about a run", runs="run"),
    "dashboard": Verb("dpo.dashboard", "a tracker's dashboard of runs and sweeps"),
    "chat": Verb("dpo.chat", "talk to a run and to its base", runs="run"),
    "export": Verb("dpo.export", "merge, convert and package a run's adapter", runs="run"),
    "audit": Verb("dpo.audit", "check an exported or adapter folder without loading it"),
    "cache": Verb("dpo.cache", "what the cache folder holds; prune it"),
}
ALIASES = {"prepare-dataset": "prepare", "prepare_dataset": "prepare"}


def usage() -> str:
    """The help text."""
    verbs = "\n".join(f"  {name:12} {verb.does}" for name, verb in VERBS.items())
    return (
        f"dpo-train VERB [flags] [key=value ...]\n\n{verbs}\n\n"
        "dpo-train VERB --help shows a verb's keys; dpo-train train --cfg job what a command composes to.\n"
        'Completion: eval "$(dpo-train -sc install=bash)", or zsh; in fish dpo-train -sc install=fish | source\n'
    )


def main(argv: Sequence[str] | None = None, config_file: Path | None = None) -> None:
    """Run one verb and exit with its code. `config_file`: the `.dpo_config.json`, else the one of this folder."""
    if argv is None:
        from dpo import signals, streams

        signals.stand()
        streams.forgive()
    from dpo.command.classic import CONFIG_FILE

    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if "--version" in words:
        from dpo import __version__

        print(__version__)
        return
    if words[0] in ("-sc", "--shell-completion"):
        from dpo.command.completion import complete

        complete(words[1:], VERBS, ALIASES)
        return
    from dpo.config.failures import exits

    exits(lambda: dispatch(words[0], words[1:], config_file or Path(CONFIG_FILE)))


def dispatch(name: str, arguments: list[str], config_file: Path) -> None:
    """Hand the command line to the verb's module, as if it had been started with `python -m`."""
    from dpo.command.classic import command_line

    name = ALIASES.get(name, name)
    if name not in VERBS:
        raise ConfigError(f"{name}: unknown verb{nearest(name, [*VERBS, *ALIASES])}; dpo-train --help lists them")
    verb = VERBS[name]
    if importlib.util.find_spec(verb.module) is None:
        raise ConfigError(f"{name}: not in this version yet")
    if name != "init":
        arguments = command_line(name, arguments, config_file)
    sys.argv = [f"dpo-train {name}", *arguments]
    importlib.import_module(verb.module).main()


if __name__ == "__main__":
    main()
