"""What a run's config.yaml lacks because it was written before the key existed, read as today's default.

The default of a key is the value that every option of conf/ with its schema sets alike. Where they differ, as for
`model.path`, there is none, and the file stays incomplete.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from dpo.config.folder import conf_folder
from dpo.config.schema import NODES, Config

Values = dict[str, Any]


def fill(raw: Values, options: dict[str, str]) -> Values:
    """Add the missing keys to a plain config in place; returns them, dotted. `options`: each group's schema node."""

    conf = conf_folder()
    filled = _fill(Config, raw, [load_values(conf / "config.yaml")], "")
    for group, node in options.items():
        if isinstance(raw.get(group), dict):
            filled |= _fill(NODES[group][node], raw[group], _values_of(conf / group, node), f"{group}.")
    return filled


def _fill(schema: type, raw: Values, defaults: list[Values], prefix: str) -> Values:
    filled: Values = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, known = field.name, [values[field.name] for values in defaults if field.name in values]
        if key not in raw:
            if field.default is MISSING and known and all(value == known[0] for value in known):
                raw[key] = filled[f"{prefix}{key}"] = known[0]
            continue
        # Below this only what is typed: in free mappings, as dpo.trainer, a key that is not there says something.
        nested = [kind for kind in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(kind)]
        if nested and isinstance(raw[key], dict):
            inner = [value for value in known if isinstance(value, dict)]
            filled |= _fill(nested[0], raw[key], inner, f"{prefix}{key}.")  # type: ignore[arg-type]
    return filled


def _values_of(folder: Path, node: str) -> list[Values]:
    """The values of each option in a group's folder whose schema is `node`."""
    options = [path.stem for path in sorted(folder.glob("*.yaml")) if not path.stem.startswith("shared")]
    read = [read_option(folder, option) for option in options]
    return [values for schema, values in read if schema == node]


def read_option(folder: Path, option: str) -> tuple[str | None, Values]:
    """(schema node, values) of one YAML, with what it takes from its defaults beside it."""
    own = load_values(folder / f"{option}.yaml")
    schema: str | None = None
    values: Values = {}
    for entry in own.pop("defaults", []):
        if entry == "_self_":
            values |= own
        elif entry in NODES[folder.name]:
            schema = entry
        else:
            values |= read_option(folder, entry)[1]
    return schema, values if values else own


def load_values(path: Path) -> Values:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
