"""The parts of a mixture: each an option of the dataset group with a few values changed, in one visible place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpo.config.checks.ranges import RANGES
from dpo.config.datasets import SCHEMAS, Mixture, Rows
from dpo.config.folder import conf_folder, options
from dpo.config.nearest import nearest
from dpo.config.plain_yaml import load_yaml
from dpo.errors import ConfigError

Values = dict[str, Any]
WHOLE = ("max_length", "soft_labels", "count_tool_tokens", "chat_template_kwargs", "judges", "max_new_tokens")
"""Keys that one value of the mixture decides for every part."""
COMMON = ("min_prompt_tokens", "keep", "on_bad", "dev_fraction", "test_fraction")
"""Keys that are each part's own, unless the mixture gives a value."""
PATHS = ("path", "dev_path", "test_path")


def resolve(mixture: Mixture) -> None:
    """Write every value of every part into `overrides`, so that it says all that a part is; doing so again changes
    nothing. Raises ConfigError, naming the key."""
    names, weights = mixture.parts, mixture.weights
    if len(names) < 1:
        raise ConfigError("dataset.parts: needs names, as in dataset.parts=[hh_rlhf,shp]")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"dataset.parts: {name} stands there twice; name one of them as you like, {_AS}")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"dataset.parts: {name!r:.40}: letters, digits, dash and underscore make a name")
    for name in mixture.overrides:
        if name not in names:
            raise ConfigError(f"dataset.overrides.{name}: no such part{nearest(str(name), names)}")
    if weights is not None and len(weights) != len(names):
        raise ConfigError(f"dataset.weights: {len(weights)} for {len(names)} parts")
    if weights is not None and not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"dataset.weights={weights}: must be above 0; leave a part out of dataset.parts instead")
    if mixture.path is not None:
        raise ConfigError("dataset.path: rows belong to a part, as in dataset.overrides.hh_rlhf.path=FILE")
    mixture.overrides = {name: _resolved(name, mixture) for name in names}


_AS = "as in dataset.overrides.ours={source: local, path: pairs.jsonl}"


def _resolved(name: str, mixture: Mixture) -> Values:
    own, key = mixture.overrides.get(name) or {}, f"dataset.overrides.{name}"
    if not isinstance(own, dict):
        raise ConfigError(f"{key}: must hold keys of its dataset, as {{path: pairs.jsonl}}")
    if whole := next((k for k in own if k in WHOLE), None):
        raise ConfigError(f"{key}.{whole}: one for all parts; set dataset.{whole}")
    option = name if name in options("dataset") else own.get("source")
    if option is None:
        raise ConfigError(f"dataset.parts: {name} is no dataset{nearest(name, options('dataset'))}; or say what, {_AS}")
    values = _option(str(option))
    source = own.get("source", values["source"])
    if source not in SCHEMAS or source == "mixture" or source != values["source"]:
        raise ConfigError(f"{key}.source={source}: must be a dataset that reads rows{nearest(str(source), SCHEMAS)}")
    common = {k: value for k in COMMON if (value := getattr(mixture, k)) is not None}
    values |= {**common, **own, **{k: getattr(mixture, k) for k in WHOLE}}
    part = {k: _plain(value) for k, value in vars(_built(source, values, key)).items() if k not in WHOLE}
    return {k: _place(value) if k in PATHS and value is not None else value for k, value in part.items()}


def _option(option: str) -> Values:
    """The values of one YAML of the dataset group, with what it takes from its defaults."""
    folders = [root / "dataset" for root in (Path.cwd() / "conf", conf_folder())]
    path = next((file for folder in folders if (file := folder / f"{option}.yaml").is_file()), None)
    if path is None:
        raise ConfigError(f"dataset.parts: no dataset {option}{nearest(option, options('dataset'))}")
    own: Values = load_yaml(path)
    values: Values = {}
    for entry in own.pop("defaults", ["_self_"]):
        if entry == "_self_":
            values |= own
        elif entry.removeprefix("base_") not in SCHEMAS:
            values |= _option(entry)
    return values


def _built(source: str, values: Values, key: str) -> Rows:
    try:
        part = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SCHEMAS[source]), values))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{key}.{error.full_key}: needs a value") from None
    except OmegaConfBaseException as error:
        unknown = next((k for k in values if k not in SCHEMAS[source].__dataclass_fields__), None)
        if unknown is not None:
            raise ConfigError(f"{key}.{unknown}: unknown key{nearest(unknown, known_keys(source))}") from None
        raise ConfigError(f"{key}.{error.full_key or ''}: {str(error).splitlines()[0]}") from None
    assert isinstance(part, Rows)
    for name, value in vars(part).items():
        holds = RANGES.get(f"dataset.{name}")
        if holds is not None and value is not None and not holds[0](value):
            raise ConfigError(f"{key}.{name}={value}: must be {holds[1]}")
    return part


def known_keys(source: str) -> list[str]:
    """Keys that a part of this source may have."""
    return [name for name in SCHEMAS[source].__dataclass_fields__ if name not in WHOLE]


def _plain(value: Any) -> Any:
    from dpo.config.parse import plain

    return plain(value)


def _place(value: str) -> str:
    return os.path.abspath(Path(value).expanduser()) if Path(value).expanduser().exists() else value


def parts_of(mixture: Mixture) -> dict[str, Rows]:
    """Each part of a resolved mixture as the dataset it is."""
    whole = {name: getattr(mixture, name) for name in WHOLE}
    return {
        name: _built(values["source"], {**values, **whole}, f"dataset.overrides.{name}")
        for name, values in mixture.overrides.items()
    }
