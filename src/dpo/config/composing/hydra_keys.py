"""What files and command lines may say to Hydra itself. Some of its keys name code to run; all but a few are refused.

Hydra makes objects of `hydra.callbacks` and of the log formatters by the class that a file names, before any verb's
code runs, and imports what `hydra.searchpath` names. A file is checked where it is loaded, with the place it ends up
in; a command line before Hydra sees it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from dpo.config.folder import conf_folder
from dpo.config.plain_yaml import parse_yaml, read_bounded
from dpo.errors import Refused

# A grid, and the launcher of its jobs: plain values, read into dataclasses of ours. A parameter of a grid becomes an
# override of its jobs, so its name must be one of a key of ours.
HYDRA = re.compile(r"hydra\b")
PARAMETER = r"[+~]{0,2}(?!hydra\b)(?!.*@hydra\b)[A-Za-z_][\w./@-]*"
ALLOWED = re.compile(
    rf"hydra\.(mode|sweeper\.params(\.{PARAMETER})?|launcher\.(?!_)\w+(\..+)?"
    r"|launcher\._target_=hydra_plugins\.dpo\.CollectJobs)"
)
GROUP = "hydra/launcher"
# Of Hydra's own use, and without effect on a verb here.
NO_EFFECT = {
    "hydra.run.dir": "has no effect here; runs land in $DPO_OUTPUTS/<name>, see name=",
    "hydra.sweep.dir": "has no effect here; sweeps land in $DPO_OUTPUTS/sweeps, see name=",
    "hydra.sweep.subdir": "has no effect here; a job's folder is named by its swept keys",
    "hydra.verbose": "has no effect here; DPO_TRACEBACK=1 shows where an error is from",
    "hydra/sweeper": "has no effect here; -m or sweep=NAME runs a grid, hydra/launcher=... says where",
}
# Hydra's own files and the typed nodes in its store, which no user writes.
OURS = ("hydra", "schema")


def check_words(words: Iterable[str]) -> None:
    """Raise Refused for an override that sets a key of Hydra's not on the list; what does not parse, Hydra reports."""
    parser = OverridesParser.create()
    for word in words:
        try:
            parsed = parser.parse_override(word)
            value = parsed.value()
        except Exception:  # noqa: BLE001, S112 - Hydra says what is wrong with it when it composes
            continue
        key, package = parsed.key_or_group, parsed.package or ""
        if HYDRA.match(package) or (HYDRA.match(key) and key != GROUP and _refused(key, value) is not None):
            why = NO_EFFECT.get(key, "a key of Hydra's that cannot be set here")
            raise Refused(f"{key}{f'@{package}' if package else ''}: {why}")


def _refused(key: str, value: Any) -> str | None:
    """The first key in a value set at `key` that is not on the list."""
    for path, leaf in _leaves(value, key):
        if not (ALLOWED.fullmatch(path) or ALLOWED.fullmatch(f"{path}={leaf}")):
            return path
    return None


def _leaves(node: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}")
    else:
        yield prefix, node


def guard() -> None:
    """Have every file that Hydra composes checked, from wherever it was taken; may be called again."""
    if ConfigLoaderImpl._load_single_config is _load_checked:
        return
    ConfigLoaderImpl._load_single_config = _load_checked  # type: ignore[method-assign]
    # Hydra imports its plugins a second time when it looks for them: the class it uses is in its registry.
    Plugins.instance()
    source: Any = SourcesRegistry.instance().types["file"]
    source.load_config = functools.partialmethod(_load_bounded, source.load_config)


_load_single = ConfigLoaderImpl._load_single_config


def _load_bounded(self: Any, load: Callable[[Any, str], Any], config_path: str) -> Any:
    path = Path(self.path) / self._normalize_file_name(config_path)
    if path.exists() and not path.resolve().is_relative_to(conf_folder().resolve()):
        parse_yaml(read_bounded(path), str(path))
    return load(self, config_path)


def _load_checked(self: ConfigLoaderImpl, default: Any, repo: Any) -> Any:
    found = _load_single(self, default, repo)
    if not isinstance(found.config, DictConfig) or "hydra" not in found.config or found.provider in OURS:
        return found
    # conf/ of this project is "main"; its files are trusted in their own places.
    if found.provider == "main" and (default.primary or not (default.package or "").startswith("hydra")):
        return found
    node = OmegaConf.to_container(found.config, resolve=False)
    assert isinstance(node, dict)
    if key := _refused("hydra", node["hydra"]):
        where = str(found.path).removeprefix("file://")
        raise Refused(f"{where}/{default.config_path}: sets {key}, a key of Hydra's that cannot be set here")
    return found
