"""A run's settings as a diff against what `python -m dpo.train` does when nothing is asked for."""

from __future__ import annotations

from typing import Any, TypeVar

from dpo.config.identity import flat

T = TypeVar("T")
Row = dict[str, Any]
# Not settings: how the file is read back, and names that differ for every run.
SKIPPED = ("options",)


def default_settings() -> Row:
    """The composed defaults, flat: `dpo.beta` to 0.1."""
    from dpo.config.parse import plain
    from dpo.config.schema import Config

    return flat(plain(composed("config", Config, [])))


def composed(config_name: str, schema: type[T], overrides: list[str]) -> T:
    """What a verb of that primary config would get; raises ConfigError as it would."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from dpo.config.entry import register
    from dpo.config.failures import translate
    from dpo.config.folder import conf_folder
    from dpo.config.parse import parse
    from dpo.errors import ConfigError

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
