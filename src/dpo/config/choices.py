"""One option a group: of several, written as a list, the last would win in silence."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import OmegaConf

from dpo.config.folder import conf_folder, options
from dpo.errors import ConfigError


def check_choices(config_name: str, chosen: Iterable[str]) -> None:
    """Raise a ConfigError for a group of this verb that is not among `chosen`, those with one option (null is one)."""
    chosen = set(chosen)
    for group in _groups(config_name):
        if group not in chosen:
            known = ", ".join(options(group))
            raise ConfigError(
                f"{group}: takes one option{f', of {known}' if known else ''}; several are a grid: -m {group}=A,B"
            )


def _groups(config_name: str) -> list[str]:
    """Those of the primary config's defaults list, but for judges, which sit together."""
    defaults = OmegaConf.to_container(OmegaConf.load(conf_folder() / f"{config_name}.yaml"), resolve=False)
    entries = defaults["defaults"]  # type: ignore[index,call-overload]
    named = [(key, value) for entry in entries if isinstance(entry, dict) for key, value in entry.items()]
    return [key.removeprefix("override ") for key, value in named if not isinstance(value, list)]
