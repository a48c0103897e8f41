"""The one crossing from OmegaConf to dataclasses: unknown keys, ranges and combinations are settled here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpo.config import judges
from dpo.config.checks.combinations import check_combinations
from dpo.config.checks.given import check_given
from dpo.config.checks.mixture import resolve
from dpo.config.checks.ranges import RANGES
from dpo.config.datasets import Mixture
from dpo.config.help.words import hint_in
from dpo.config.identity import identity
from dpo.config.places import make_absolute
from dpo.config.schema import Config
from dpo.errors import ConfigError

Schema = TypeVar("Schema")


def parse(cfg: DictConfig, schema: type[Schema]) -> Schema:
    """Turn a composed config into its dataclass, or raise a ConfigError of one line per fault (at most three)."""
    faults = [f"{key}: unknown key{hint_in(key, cfg)}" for key in _unknown(cfg, schema)]
    if not faults:
        for key, (holds, allowed) in {**RANGES, **judges.RANGES}.items():
            value = _value(cfg, key)
            if value is not None and not holds(value):
                faults.append(f"{key}={value}: must be {allowed}")
    faults = faults or [f"{key}={value}: must be a finite number" for key, value in _endless(cfg)]
    if faults:
        raise ConfigError("\n".join(faults[:3]))
    check_given(cfg)
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: needs a value, as in {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    dataset = getattr(config, "dataset", None)
    if isinstance(dataset, Mixture):
        resolve(dataset)
    if isinstance(config, Config):
        check_combinations(config)
        make_absolute(config)
    return config  # type: ignore[return-value]


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error.msg or error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key else first


def _value(cfg: DictConfig, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if node is None or not OmegaConf.is_config(node) or part not in node or OmegaConf.is_missing(node, part):
            return None
        node = node[part]
    return node


def _unknown(cfg: DictConfig, schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the full key of each that the dataclasses do not have; `+key=` gets this far."""
    known = [f.name for f in dataclasses.fields(schema)]
    for key in map(str, cfg):
        if key not in known:
            yield f"{prefix}{key}"
        elif OmegaConf.is_missing(cfg, key):
            continue
        elif isinstance(node := cfg[key], DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
            yield from _unknown(node, OmegaConf.get_type(node), f"{prefix}{key}.")  # type: ignore[arg-type]


def _endless(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each number that is infinite, none, or beyond any count: no key of any verb has a use for one."""
    for key in list(node) if OmegaConf.is_dict(node) else range(len(node)):
        if OmegaConf.is_missing(node, key):
            continue
        value, name = node[key], f"{prefix}{key}"
        if OmegaConf.is_config(value):
            yield from _endless(value, f"{name}.")
        elif isinstance(value, (int, float)) and not abs(value) <= 1e40:
            yield name, value


def plain(config: Any) -> Any:
    """A config dataclass as JSON-able data: enums by name."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, dict):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list):
        return [plain(value) for value in config]
    return config


def fingerprint(config: Config) -> str:
    """Ten hex digits over everything that decides what is computed; see `identity`."""
    return identity(plain(config))
