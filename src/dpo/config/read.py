"""Read a run directory's config.yaml back into a typed Config. It is read, never composed: nothing in it can run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpo.config.gaps import fill
from dpo.config.parse import parse
from dpo.config.plain_yaml import load_yaml
from dpo.config.schema import NODES, Config
from dpo.errors import ConfigError


def read_config(path: Path) -> Config:
    """Rebuild the Config that `config_yaml` wrote; its `options` name every group's schema.

    Keys the file lacks, as one written before they existed does, get today's defaults, and a line says so. Only for
    reading a run: to continue one, the fingerprint of its whole config decides.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file; is {path.parent} a run directory?")
    values = load_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold a mapping of names")
    # Ours are written resolved. Below OmegaConf would look a stranger's up, in this machine's environment too.
    if text := next((text for text in _texts(values) if "${" in text), None):
        raise ConfigError(f"{path}: holds an interpolation, {text[:60]!r}; a run directory's config has none")
    options = values.pop("options", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: options: must name each group's schema")
    typed = OmegaConf.structured(Config)
    try:
        for group, node_name in options.items():
            if node_name not in NODES.get(group, ()):
                raise ConfigError(f"{path}: options: {group} has no schema {node_name}")
            typed[group] = OmegaConf.structured(NODES[group][node_name])
        filled = fill(values, options)
        merged = OmegaConf.merge(typed, values)
        assert isinstance(merged, DictConfig)
        config = parse(merged, Config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except (TypeError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if filled:
        _say_once(f"{path}: written without {', '.join(sorted(filled))}; read with today's defaults")
    return config


def _texts(node: Any) -> Iterator[str]:
    """Every text in plain data, keys too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


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
