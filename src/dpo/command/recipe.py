"""Files in place of overrides: a recipe of deltas, the config.yaml of a run to train again, or rows of one's own."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpo.config.arguments import ALONE, WITH_VALUE, is_override
from dpo.config.folder import options
from dpo.config.nearest import nearest
from dpo.config.plain_yaml import load_yaml
from dpo.config.schema import NODES
from dpo.errors import ConfigError
from dpo.pages.defaults import as_overrides, literal
from dpo.records.read import Row

YAML = (".yaml", ".yml")
ROWS = re.compile(r".+\.(jsonl?|csv|tsv|parquet|arrow)(\.gz|\.zst)?", re.IGNORECASE)
# What a recipe may name an option of, and what it may set outside the groups.
CHOICES = (*NODES, "experiment", "sweep")
KEYS = ("seed", "name", "resume", "resume_anyway")


def with_files(argv: list[str], groups: tuple[str, ...] = (), typed: Iterable[str] = ()) -> list[str]:
    """A command line with each bare word that is a file replaced by its overrides, which are printed.

    A key as typed wins over the file's, and a group as typed over all that the file says of it. `groups`: the only ones
    this verb takes; `typed`: keys that were typed besides. Raises ConfigError for a file that is none of these or not
    there.
    """
    # The word behind an unknown flag is its value too: the flag is what is wrong.
    valued = {
        i + 1 for i, word in enumerate(argv) if word in WITH_VALUE or (word.startswith("-") and word not in ALONE)
    }
    bare = [word for i, word in enumerate(argv) if not (word.startswith("-") or is_override(word) or i in valued)]
    keys = {*typed, *(word.lstrip("+~").partition("=")[0] for word in argv if is_override(word))}
    made: list[str] = []
    for word in bare:
        path = Path(word).expanduser()
        found = _overrides(path)
        kept = [one for one in found if not _wins(keys, one) and (not groups or _group(one) in groups)]
        # As a shell takes it: zsh looks for files behind a bare bracket.
        print(f"{path} -> {shlex.join(kept)}", file=sys.stderr)
        made += kept
    # Before what was typed; each file has gone from its own place.
    return [*made, *(word for word in argv if word not in bare)]


def _group(override: str) -> str:
    return re.split(r"[.=]", override, maxsplit=1)[0]


def _wins(keys: set[str], override: str) -> bool:
    """Whether what was typed says this, or chooses the whole group it is of."""
    key = override.partition("=")[0]
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _overrides(path: Path) -> list[str]:
    run = path / "config.yaml"
    if run.is_file():
        path = run
    if path.is_dir() or (path.is_file() and ROWS.fullmatch(path.name)):
        return ["dataset=local", f"dataset.path={literal(str(path))}"]
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; a recipe (.yaml), a run's config.yaml or rows (.jsonl, .csv, .parquet) are taken "
            "here, and settings as key=value"
        )
    if path.suffix not in YAML:
        raise ConfigError(f"{path}: neither a recipe (.yaml) nor rows (.json, .jsonl, .csv, .tsv, .parquet)")
    values = load_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold a mapping of names")
    try:
        return as_overrides(values) if isinstance(values.get("options"), dict) else _of_recipe(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: not a config.yaml that a run has written") from None


def _of_recipe(values: Row) -> list[str]:
    """Overrides of a recipe: `defaults` and plain words choose options, mappings set keys."""
    chosen: dict[str, Any] = {}
    for entry in values.pop("defaults", None) or []:
        if entry == "_self_":
            continue
        if not isinstance(entry, dict):
            raise ConfigError(f"defaults: {entry}: write - override /GROUP: OPTION")
        chosen |= {key.removeprefix("override ").strip().lstrip("/"): option for key, option in entry.items()}
    for key in [key for key in values if key in CHOICES and not isinstance(values[key], dict)]:
        chosen[key] = values.pop(key)
    for key in [*chosen, *values]:
        if key not in (*CHOICES, *KEYS):
            raise ConfigError(f"{key}: unknown key{nearest(key, (*CHOICES, *KEYS))}")
    words = []
    for group, option in chosen.items():
        if group not in CHOICES or (option is not None and option not in options(group)):
            raise ConfigError(f"{group}={option}: no such option{nearest(str(option), options(group))}")
        words.append(f"{group}={literal(option)}")
    return words + [word for key, value in values.items() for word in _leaves(key, value)]


def _leaves(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [word for name, one in value.items() for word in _leaves(f"{key}.{name}", one)]
    return [f"{key}={literal(value)}"]
