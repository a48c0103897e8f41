"""The entry every verb shares: compose, parse, run, and turn each failure into its lines and exit code."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dpo
from dpo.config import schema as _schema
from dpo.config.nearest import nearest
from dpo.config.parse import parse
from dpo.config.sweeps import Grid
from dpo.errors import ConfigError, DpoError, OutOfMemory, Refused, is_out_of_memory

T = TypeVar("T")
SECRET = re.compile(
    r"(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|\b[0-9a-f]{40}\b(?<!revision=.{40})|wandb_v1_[A-Za-z0-9_]{20,}"
    r"|(?:api_?key|token|password|secret)=\S+)",
    re.IGNORECASE,
)

FREE_KEY = re.compile(r"^(?=(dpo\.trainer|dataset\.chat_template_kwargs|dataset\.columns|sweep\.evaluation)\.)")

# Hydra's flags that take the next word, which is then no folder.
WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip

# No verb wants Hydra's own folders, logs or change of directory: the run directory is ours.
HYDRA = (
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


def conf_folder() -> Path:
    """The folder of YAML groups: in a checkout conf/ at its top, in an installed wheel dpo/conf."""
    packaged = Path(dpo.__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(dpo.__file__).parents[2] / "conf"


def main(
    config_name: str,
    schema: type[T],
    body: Callable[[T], object],
    positional: str | None = None,
    multirun: Callable[[Grid[T]], None] | None = None,
) -> None:
    """Run `body` with the parsed config of this command line and exit with its code.

    With -m or a sweep's file, `multirun` gets the whole grid, every config of it checked. `positional` is the key that
    bare folders on the command line go to (`dpo.evaluate DIR` is `run=DIR`); when it ends in `+`, as a list.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        # Hydra leaves a multirun.yaml in the sweep's folder; ours is another, and has sweep.json.
        aside = tempfile.mkdtemp(prefix="hydra-")
        words = [*_arguments(sys.argv[1:], positional), *HYDRA, f"hydra.sweep.dir='{aside}'"]
        sys.argv[1:] = _overrides_first(words)
        _check_flags(sys.argv[1:])
        register(config_name, schema)
        composed = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
        captured: list[tuple[DictConfig, HydraConf]] = []

        def capture(cfg: DictConfig) -> None:
            captured.append((cfg, HydraConfig.get()))

        try:
            _compose(lambda: composed(capture)())
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        # Hydra keeps `--help` and `--cfg` to itself; what it composed comes out here, past its error printing.
        configs = [(_parse(cfg, schema), list(own.overrides.task)) for cfg, own in captured]
        if not configs:
            return
        own = captured[0][1]
        if own.mode is not RunMode.MULTIRUN:
            body(configs[0][0])
        elif multirun is None:
            raise ConfigError("-m: this verb takes no grid")
        else:
            settings = OmegaConf.to_object(own.launcher)  # type: ignore[arg-type]
            multirun(Grid(configs, own.runtime.choices["hydra/launcher"], settings))  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - the one place where failures become exit codes
        sys.exit(report(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


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
    ConfigStore.instance().store(name=f"base_{config_name}", node=schema)
    from hydra._internal.hydra import Hydra
    from hydra.core.plugins import Plugins

    from dpo.config.search_path import UserConf
    from hydra_plugins.dpo import CollectJobs

    Plugins.instance().register(UserConf)
    # Hydra's own search finds no packages of an editable install.
    Plugins.instance().register(CollectJobs)
    # Hydra's own listing copies its whole store for each group, two seconds of `--help`, and names schema nodes too.
    Hydra.format_config_groups = _list_groups  # type: ignore[method-assign, assignment]


def _list_groups(hydra: object, predicate: Callable[[str], bool], compact: bool = True) -> str:
    """A line a group, for `--help`."""
    roots = [root for root in (conf_folder(), Path.cwd() / "conf") if root.is_dir()]
    groups = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir() and predicate(path.name)})
    return "".join(f"{group}: {', '.join(names)}\n" for group in groups if (names := options(group)))


def report(error: BaseException) -> int:
    """Print a failure as a user should see it and return its exit code."""
    if os.environ.get("DPO_TRACEBACK") == "1":
        traceback.print_exception(error)
    known = translate(error)
    if known is None:
        traceback.print_exception(error)
        return 1
    print(
        "\n".join(f"error: {line}" if i == 0 else f"  {line}" for i, line in enumerate(str(known).splitlines())),
        file=sys.stderr,
    )
    return known.exit_code


def _parse(cfg: DictConfig, schema: type[T]) -> T:
    OmegaConf.resolve(cfg)
    return parse(cfg, schema)


def _arguments(argv: list[str], positional: str | None) -> list[str]:
    folders, rest = [], []
    words = iter(argv)
    for argument in words:
        if (found := SECRET.search(argument)) and not re.search(r"revision=[0-9a-f]{40}$", argument):
            name = argument.split("=")[0] if "=" in argument else f"{found.group()[:4]}..."
            raise Refused(
                f"{name}: looks like a secret; pass secrets by environment variable (HF_TOKEN, WANDB_API_KEY)"
            )
        if argument in WITH_VALUE:
            rest += [argument, *itertools.islice(words, 1)]
        elif positional and "=" not in argument and not argument.startswith("-"):
            folders.append(str(Path(argument).expanduser()))
        else:
            argument = re.sub(r"=~/", f"={Path.home()}/", argument)
            # Keys of free-form mappings are new ones to Hydra, which would ask for a plus sign.
            rest.append(FREE_KEY.sub("++", argument))
    if folders and positional:
        if positional.endswith("+"):
            quoted = ",".join(f"'{folder}'" for folder in folders)
            rest.append(f"{positional[:-1]}=[{quoted}]")
        elif len(folders) == 1:
            rest.append(f"{positional}='{folders[0]}'")
        else:
            raise ConfigError(f"{folders[1]}: only one folder is taken here")
    return rest


def _overrides_first(argv: list[str]) -> list[str]:
    """Overrides side by side, then flags: Hydra's parser takes only one run of overrides."""

    def is_override(argument: str) -> bool:
        return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))

    return sorted(argv, key=lambda argument: not is_override(argument))


def _check_flags(argv: list[str]) -> None:
    """One line for a flag Hydra does not have, where its parser would print its whole usage."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flag = unknown.group(1)
            known = [name for action in parser._actions for name in action.option_strings]
            message = f"{flag}: unknown flag{nearest(flag, known)}; settings are written key=value"
        raise ConfigError(message.removeprefix("argument "))

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(argv)


def options(group: str) -> list[str]:
    """Names a group offers, without its schema nodes and shared values (whose files begin with `shared`)."""
    # Every model is a generator, see config/synthesize.py.
    groups = (group, "model") if group == "generator" else (group,)
    folders = [root / name for root in (conf_folder(), Path.cwd() / "conf") for name in groups]
    names = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
    return sorted(name for name in names if not name.startswith("shared"))


def translate(error: BaseException) -> DpoError | None:
    """A DpoError for everything a user can cause on the command line or in YAML; None for our own faults."""
    if isinstance(error, DpoError):
        return error
    if isinstance(error, OverrideParseException):
        text = str(getattr(error, "override", "")) or str(error).splitlines()[0]
        return ConfigError(f"{text}: not an override; write key=value, and quote values with special characters")
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, (ConfigCompositionException, OmegaConfBaseException, HydraException)):
        return ConfigError(_composition(error))
    if is_out_of_memory(error):
        size = re.search(r"[Tt]ried to allocate [\d.]+ \w+", str(error))
        return OutOfMemory(
            f"out of memory{f': {size[0].lower()}' if size else ''}\n"
            "try a shorter dataset.max_length, hardware.engine=packed, lora=qlora or a smaller model"
        )
    if isinstance(error, OSError) and error.errno == 28:
        from dpo.errors import DiskFull

        return DiskFull(f"{error.filename or 'disk'}: no space left; free some room and run the same command again")
    return None


def _missing_option(error: MissingConfigException) -> ConfigError:
    name = str(error.missing_cfg_file or "")
    group, _, option = name.strip("/").rpartition("/")
    if group:
        return ConfigError(f"{group}={option}: no such option{nearest(option, options(group))}")
    return ConfigError(str(error).splitlines()[0])


def _composition(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error).splitlines()[0]
    key = getattr(cause, "full_key", None)
    if found := re.search(r"Could not override '([^']+)'", str(error)):
        key = found.group(1)
        if "not in struct" in str(cause) or "not in '" in str(cause):
            parent = key.rpartition(".")[0]
            owner = getattr(cause, "parent_node", None)
            known = [str(k) for k in owner] if isinstance(owner, DictConfig) else []
            names = [f"{parent}.{k}" if parent else k for k in known]
            return f"{key}: unknown key{nearest(key, names)}"
        return f"{key}: {str(cause).splitlines()[0]}"
    if found := re.search(r"Could not override '?([^'\n]+)'?\.", text):
        key = found.group(1)
    if found := re.search(r"No match in the defaults list", str(error)):
        return text
    message = str(cause).splitlines()[0] if str(cause) else text
    return f"{key}: {message}" if key and not message.startswith(str(key)) else message
