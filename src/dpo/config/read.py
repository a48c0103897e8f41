"""Read a run directory's config.yaml back into a typed Config. It is read, never composed: nothing in it can run."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpo.config.gaps import fill
from dpo.config.parse import parse
from dpo.config.schema import NODES, Config
from dpo.errors import ConfigError


def read_config(path: Path) -> Config:
    """Rebuild the Config that `config_yaml` wrote; its `options` name every group's schema.

    Keys the file lacks, as one written before they existed does, get today's defaults, and a line says so. Only for
    reading a run: to continue one, the fingerprint of its whole config decides.
    """
    try:
        raw = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; is {path.parent} a run directory?") from None
    except Exception as error:  # noqa: BLE001 - any YAML fault of a foreign file is the same one-line answer
        raise ConfigError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"{path}: must hold a mapping")
    # Ours are written resolved; an interpolation in a stranger's could read this machine's environment.
    if "${" in path.read_text(encoding="utf-8"):
        raise ConfigError(f"{path}: holds an interpolation, ${{...}}; a run directory's config has none")
    options: dict[str, Any] = raw.pop("options", {})
    typed = OmegaConf.structured(Config)
    try:
        for group, node_name in options.items():
            typed[group] = OmegaConf.structured(NODES[group][node_name])
        values = OmegaConf.to_container(raw)
        filled = fill(values, options)  # type: ignore[arg-type]
        merged = OmegaConf.merge(typed, values)
    except (KeyError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(merged, DictConfig)
    config = parse(merged, Config)
    if filled:
        _say_once(f"{path}: written without {', '.join(sorted(filled))}; read with today's defaults")
    return config


@functools.cache
def _say_once(line: str) -> None:
    """On standard error; a verb reads the same file several times."""
    print(line, file=sys.stderr)


def config_yaml(config: Config) -> str:
    """The text of config.yaml: every value resolved, and which schema each group's option has."""
    from dpo.config.parse import plain

    names = {node: name for nodes in NODES.values() for name, node in nodes.items()}
    options = {group: names[type(getattr(config, group))] for group in NODES}
    return OmegaConf.to_yaml(OmegaConf.create({**plain(config), "options": options}))
