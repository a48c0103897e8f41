"""Paths that a config gives, looked at before anything opens them: a pipe or a device would wait for ever."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dpo.errors import ConfigError, DataError, DpoError

# Keys of any verb whose values are paths, or ids of a hub, which no file here has the name of.
PATHS = frozenset(
    "path dev_path test_path adapter run runs root responses prompts prompts_file out output include folder "
    "resume".split()
)
FOLDERS = frozenset(("run", "runs", "root", "include", "folder", "output"))
# Folders that are read file by file.
READ = frozenset(("run", "runs", "resume", "path", "adapter", "folder"))
MOST_ENTRIES = 20_000


def check_given(cfg: DictConfig) -> None:
    """Raise ConfigError (DataError for rows) for a path that is a pipe, a device, or a file where a folder belongs."""
    for key, name, value in _given(cfg, ""):
        kind: type[DpoError] = DataError if key.startswith("dataset.") else ConfigError
        path = Path(value).expanduser()
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RuntimeError) as error:
            raise kind(f"{key}={value[:200]}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise kind(f"{key}={value}: a pipe, socket or device; files and folders are taken here")
        if name in FOLDERS and not stat.S_ISDIR(mode):
            raise kind(f"{key}={value}: a file; must be a folder")
        if name in READ and stat.S_ISDIR(mode):
            check_inside(path, kind)


def check_inside(folder: Path, kind: type[DpoError] = ConfigError) -> None:
    """Raise `kind` for a pipe, socket or device in a folder, at any depth; hidden folders are not looked into."""
    seen = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files):
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(path.stat().st_mode):
                    raise kind(f"{path}: a pipe, socket or device; files are read here")
        seen += len(files)
        if seen > MOST_ENTRIES:
            return


def check_folder_to_make(key: str, value: str) -> None:
    """Raise ConfigError unless `value` is a folder that can be written to, or could be made."""
    path = Path(value).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{key}={value}: a file; must be a folder, or one that can be made")
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{key}={value}: {there} cannot be written to")


def _given(cfg: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name in map(str, cfg):
        if OmegaConf.is_missing(cfg, name):
            continue
        value, key = cfg[name], f"{prefix}{name}"
        if OmegaConf.is_dict(value):
            yield from _given(value, f"{key}.")
        elif name in PATHS:
            values = value if OmegaConf.is_list(value) else [value]
            yield from ((key, name, one) for one in values if isinstance(one, str) and one)
