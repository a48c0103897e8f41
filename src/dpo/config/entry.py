"""The entry every verb shares: compose, parse, run, and exit with the code of what happened."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import dpo
from dpo import signals
from dpo.config import schema as _schema
from dpo.config.arguments import arguments, check_flags, overridden, overrides_first, quoted
from dpo.config.choices import check_choices
from dpo.config.composing.hydra_keys import guard
from dpo.config.composing.leftovers import drop_leftovers
from dpo.config.composing.search_path import UserConf
from dpo.config.failures import exits, translate
from dpo.config.folder import conf_folder
from dpo.config.help.page import help_page
from dpo.config.parse import parse
from dpo.config.roots import check_roots
from dpo.config.sweeps import Grid
from dpo.errors import ConfigError, DpoError

T = TypeVar("T")

# No verb wants Hydra's own folders, logs or change of directory: the run directory is ours.
SWEEP_DIR = "hydra.sweep.dir="
HYDRA = (
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


def main(
    config_name: str,
    schema: type[T],
    body: Callable[[T], object],
    positional: str | None = None,
    multirun: Callable[[Grid[T]], None] | None = None,
    files: Callable[[list[str]], list[str]] | None = None,
) -> None:
    """Run `body` with the parsed config of this command line and exit with its code.

    With -m or a sweep's file, `multirun` gets the whole grid, every config of it checked. `positional` is the key that
    bare folders on the command line go to (`dpo.evaluate DIR` is `run=DIR`); when it ends in `+`, as a list.
    `files` puts overrides in the place of bare words that are files.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    exits(lambda: _run(config_name, schema, body, positional, multirun, files))


def _run(
    config_name: str,
    schema: type[T],
    body: Callable[[T], object],
    positional: str | None,
    multirun: Callable[[Grid[T]], None] | None,
    files: Callable[[list[str]], list[str]] | None,
) -> None:
    if "--version" in sys.argv[1:]:
        print(dpo.__version__)
        return
    # Hydra leaves a multirun.yaml in the sweep's folder; ours is another, and has sweep.json.
    aside = Path(tempfile.gettempdir()) / f"hydra-{uuid.uuid4().hex}"
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_page(config_name, whole="all" in sys.argv[1:]))
        return
    given = files(sys.argv[1:]) if files else sys.argv[1:]
    words = [*arguments(given, positional), *HYDRA, f"{SWEEP_DIR}{quoted(aside)}"]
    sys.argv[1:] = overrides_first(words)
    for line in overridden(sys.argv[1:]):
        print(line, file=sys.stderr)
    shown = check_flags(sys.argv[1:])
    register(config_name, schema)
    composed = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
    captured: list[tuple[DictConfig, HydraConf]] = []

    def capture(cfg: DictConfig) -> None:
        captured.append((cfg, HydraConfig.get()))

    try:
        _compose(lambda: composed(capture)())
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for _, composing in captured:
        check_choices(config_name, composing.runtime.choices)
    # Hydra keeps `--help` and `--cfg` to itself; what it composed comes out here, past its error printing.
    configs = [(_parse(cfg, schema), list(own.overrides.task)) for cfg, own in captured]
    if not configs:
        if not shown:
            raise ConfigError("-m: this grid has no job; glob() picks among a group's options, and found none")
        return
    own = captured[0][1]
    if left := drop_leftovers():
        print(f"ignored, of a launcher that did not start this: {', '.join(left)}", file=sys.stderr)
    check_roots()
    with signals.unwinding():
        if own.mode is not RunMode.MULTIRUN:
            body(configs[0][0])
        elif multirun is None:
            raise ConfigError("-m: this verb takes no grid")
        else:
            settings = OmegaConf.to_object(own.launcher)  # type: ignore[arg-type]
            multirun(Grid(configs, own.runtime.choices["hydra/launcher"], settings))  # type: ignore[arg-type]


def _compose(composed: Callable[[], None]) -> None:
    """Whatever composing raises has its cause in the command line or the YAML."""
    try:
        composed()
    except DpoError:
        raise
    except Exception as error:
        raise translate(error) or ConfigError(f"cannot compose: {str(error).splitlines()[0]}") from error


def register(config_name: str, schema: type) -> None:
    """Make the typed nodes, the verb's root schema and our plugins known to Hydra; must run before any compose."""
    _schema.register()
    guard()
    ConfigStore.instance().store(name=f"base_{config_name}", node=schema)
    from hydra.core.plugins import Plugins

    from hydra_plugins.dpo import CollectJobs

    Plugins.instance().register(UserConf)
    # Hydra's own search finds no packages of an editable install.
    Plugins.instance().register(CollectJobs)


def _parse(cfg: DictConfig, schema: type[T]) -> T:
    OmegaConf.resolve(cfg)
    return parse(cfg, schema)
