"""Which files of any dataset's repository are asked for: by configuration and split, as its card or its names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from dpo.config.datasets import Hub
from dpo.config.nearest import nearest
from dpo.errors import ConfigError

# What the card of a repository says of it: the YAML at the head of its README.md.
Card = Mapping[str, Any]
Parts = dict[str, list[str]]
HELD_OUT = {"dev": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}
SHARD = re.compile(r"(-\d{5}-of-\d{5}(-[0-9a-f]{16})?|[-_.]?\d+)$")


def read_card(path: Path) -> Card:
    """The card of a folder's README.md; empty where there is none or it cannot be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception:  # noqa: BLE001 - a card is written by hand, and the names say the rest
        return {}


def licence_of(card: Card) -> str | None:
    """The licence a card names."""
    found = card.get("license")
    words = ", ".join(map(str, found)) if isinstance(found, list) else found
    named = card.get("license_name")
    return str(named) if words == "other" and named else None if words is None else str(words)


def choose_parts(files: Iterable[str], dataset: Hub, card: Card) -> Parts:
    """The data files of train, dev and test among `files`. Raises ConfigError where it has to be said which."""
    splits = _splits(list(files), dataset, card)
    train = _named(splits, dataset.split, dataset, "split") if dataset.split is not None else _train(splits, dataset)
    chosen = {"train": splits[train]}
    for part, words in HELD_OUT.items():
        wanted = getattr(dataset, f"{part}_split")
        if wanted is not None:
            chosen[part] = splits[_named(splits, wanted, dataset, f"{part}_split")]
            continue
        # test_prefs goes with train_prefs.
        like = [train.replace("train", word) for word in words if "train" in train]
        if found := next((name for name in like if name in splits), None):
            chosen[part] = splits[found]
    return chosen


def _named(splits: Parts, name: str, dataset: Hub, key: str) -> str:
    if name not in splits:
        raise ConfigError(f"dataset.{key}={name}: {dataset.id} has no such split{nearest(name, splits)}")
    return name


def _train(splits: Parts, dataset: Hub) -> str:
    found = ["train"] if "train" in splits else [name for name in splits if "train" in re.split(r"[^a-z]+", name)]
    if len(found) == 1:
        return found[0]
    if not splits:
        return "train"
    says = "several splits to train on" if found else "no split named train"
    raise ConfigError(f"dataset.split: {dataset.id} has {says}; name one of {', '.join(sorted(found or splits))}")


def _splits(files: list[str], dataset: Hub, card: Card) -> Parts:
    """The files of each split of the configuration that is asked for."""
    configs = _configs(files, card)
    if configs:
        return configs[_config(configs, dataset)]
    if dataset.config is not None:
        folders = {step for name in files for step in PurePosixPath(name).parts[:-1]}
        if dataset.config not in folders:
            raise ConfigError(
                f"dataset.config={dataset.config}: {dataset.id} has no such part{nearest(dataset.config, folders)}"
            )
        files = [name for name in files if dataset.config in PurePosixPath(name).parts[:-1]]
    splits: Parts = {"train": []}
    for name in files:
        splits.setdefault(split_name(name), []).append(name)
    return {name: part for name, part in splits.items() if part}


def _config(configs: Mapping[str, Parts], dataset: Hub) -> str:
    if dataset.config is not None:
        if dataset.config not in configs:
            raise ConfigError(
                f"dataset.config={dataset.config}: {dataset.id} has no such configuration"
                f"{nearest(dataset.config, configs)}"
            )
        return dataset.config
    if len(configs) == 1 or "default" in configs:
        return "default" if "default" in configs else next(iter(configs))
    raise ConfigError(f"dataset.config: {dataset.id} has several; name one of {', '.join(configs)}")


def _configs(files: list[str], card: Card) -> dict[str, Parts]:
    """Configuration -> split -> files, as the card maps them; the one it calls the default is `default` too."""
    listed = card.get("configs")
    found: dict[str, Parts] = {}
    for entry in listed if isinstance(listed, list) else ():
        if not isinstance(entry, Mapping) or not entry.get("data_files"):
            continue
        folder = str(entry["data_dir"]).strip("/") + "/" if entry.get("data_dir") else ""
        parts: Parts = {}
        for split, patterns in _patterns(entry["data_files"]):
            names = [n for n in files if any(fnmatchcase(n, f"{folder}{p.removeprefix('./')}") for p in patterns)]
            if names:
                parts.setdefault(split, []).extend(names)
        if parts:
            found[str(entry.get("config_name") or "default")] = parts
            if entry.get("default"):
                found.setdefault("default", parts)
    return found


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """(split, patterns) of a card's `data_files`: a pattern, a list of them, or one such for each split."""
    listed = data_files if isinstance(data_files, list) else [data_files]
    if isinstance(data_files, Mapping):
        listed = [{"split": split, "path": path} for split, path in data_files.items()]
    found = []
    for one in listed:
        path = one["path"] if isinstance(one, Mapping) else one
        split = str(one["split"]) if isinstance(one, Mapping) else "train"
        found.append((split, [str(p) for p in (path if isinstance(path, list) else [path])]))
    return found


def split_name(name: str) -> str:
    """The split whose rows a file holds, by its own name or its folder's: `test_prefs` of test_prefs-00000-of-00002."""
    known = {"train", *(word for words in HELD_OUT.values() for word in words)}
    path = PurePosixPath(name)
    steps = [SHARD.sub("", path.name.split(".")[0]), *reversed(path.parts[:-1])]
    for step in steps:
        if known & set(re.split(r"[^a-z]+", step.lower())):
            return step
    return "train"
