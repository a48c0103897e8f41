"""A run's settings as a diff against what `python -m dpo.train` does when nothing is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from omegaconf import MISSING

from dpo.config.arguments import quoted
from dpo.config.folder import conf_folder, options
from dpo.config.gaps import load_values, read_option
from dpo.config.identity import Role, flat, role
from dpo.config.schema import NODES
from dpo.errors import ConfigError

T = TypeVar("T")
Row = dict[str, Any]
# Not settings: how the file is read back, and names that differ for every run.
SKIPPED = ("options",)
ELSEWHERE = ("hardware", "tracking")
# Text that needs no quotes on a command line, and words that it must not be taken for.
PLAIN = re.compile(r"[A-Za-z_][\w./-]*|/[\w./-]+")
WORDS = ("null", "true", "false", "nan", "inf")


def default_settings() -> Row:
    """The composed defaults, flat: `dpo.beta` to 0.1. Read from the YAML: composing them takes a second."""
    values = _primary()
    groups = {group: _options(group)[option][1] for group, option in _choices(values).items()}
    return flat({key: value for key, value in values.items() if key not in ("defaults", "hydra")} | groups)


def as_overrides(config: Row, public: Callable[[str], str] = str) -> list[str]:
    """The words of a command line that computes what a run's config.yaml does, on whatever machine.

    Of each group the option nearest to it, then each value that differs. Where and how it is computed and tracked
    (`hardware`, `tracking`) is left to the machine. `public` is applied to every text.
    """
    primary = _primary()
    defaults = {group: option for group, option in _choices(primary).items() if group in config["options"]}
    words = [
        f"{key}={literal(config[key], public)}"
        for key in ("name", "seed")
        if config.get(key, primary[key]) != primary[key]
    ]
    for group, default in defaults.items():
        if group in ELSEWHERE:
            continue
        mine = _deciding(group, config[group])
        options = {name: _deciding(group, values) for name, (node, values) in _options(group).items()
                   if node == config["options"][group]}  # fmt: skip
        if not options:
            raise ConfigError(
                f"options: {group}: {config['options'][group]} is the schema of no option of conf/{group}"
            )
        apart = {name: {k: v for k, v in mine.items() if k not in values or values[k] != v}
                 for name, values in options.items()}  # fmt: skip
        # A value that an option leaves to be given is no difference from it.
        far = {name: sum(options[name].get(key) != MISSING for key in keys) for name, keys in apart.items()}
        nearest = min(apart, key=lambda name: (far[name], name != default, name))
        words += [f"{group}={nearest}"] if nearest != default else []
        words += [f"{key}={literal(value, public)}" for key, value in apart[nearest].items()]
    return words


def literal(value: Any, public: Callable[[str], str] = str) -> str:
    """A value as a command line of Hydra's reads it back."""
    if isinstance(value, str):
        text = public(value)
        return text if PLAIN.fullmatch(text) and text.lower() not in WORDS else quoted(text)
    if isinstance(value, dict):
        return f"{{{','.join(f'{quoted(key)}:{literal(one, public)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(literal(one, public) for one in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _deciding(group: str, values: Row) -> Row:
    """The keys that decide what is computed and when it is measured, dotted; an empty mapping says nothing."""
    found = flat({group: values})
    return {key: value for key, value in found.items() if value != {} and role(key) in (Role.what, Role.when)}


def _primary() -> Row:
    return load_values(conf_folder() / "config.yaml")


def _choices(primary: Row) -> dict[str, str]:
    """The option of each typed group that the primary config takes."""
    entries = [entry for entry in primary["defaults"] if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items() if group in NODES}


@cache
def _options(group: str) -> dict[str, tuple[str | None, Row]]:
    """(schema node, values) of each option of a group."""
    return {name: read_option(conf_folder() / group, name) for name in options(group)
            if (conf_folder() / group / f"{name}.yaml").is_file()}  # fmt: skip


def composed(config_name: str, schema: type[T], overrides: list[str]) -> T:
    """What a verb of that primary config would get; raises ConfigError as it would."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from dpo.config.entry import register
    from dpo.config.failures import translate
    from dpo.config.parse import parse

    register(config_name, schema)
    # A verb that Hydra started has left its own state behind; composing needs a clean one.
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            found = hydra.compose(config_name, overrides)
        OmegaConf.resolve(found)
        return parse(found, schema)
    except Exception as error:
        raise translate(error) or ConfigError(str(error).splitlines()[0]) from error


def changed_settings(config: Row, defaults: Row) -> list[list[str]]:
    """[key, default, this run] of every setting that differs; `-` where one side has no such key."""
    mine = flat({key: value for key, value in config.items() if key not in SKIPPED})
    rows = []
    for key in sorted(mine.keys() | defaults.keys()):
        if key not in mine or key not in defaults or mine[key] != defaults[key]:
            rows.append([key, _word(defaults, key), _word(mine, key)])
    return rows


def _word(settings: Row, key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
