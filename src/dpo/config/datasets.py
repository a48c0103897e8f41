"""Typed schema of the dataset group: one dataclass per option that has keys of its own. Values live in conf/dataset."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class OnBad(Enum):
    """What to do with a row that fails a check: stop with its name, or drop and count it."""

    error = "error"
    drop = "drop"


@dataclass
class Dataset:
    """Keys every dataset has. `path` takes rows of the same schema from a file or folder instead of the hub."""

    source: str = MISSING
    path: str | None = None
    max_length: int = MISSING
    limit: int | None = None
    on_bad: OnBad = MISSING


@dataclass
class Synthetic(Dataset):
    """The preference data shipped in the package."""


@dataclass
class HhRlhf(Dataset):
    """Anthropic/hh-rlhf; `subset` is a data_dir of the hub, or `all`."""

    subset: str = MISSING
    revision: str = MISSING


@dataclass
class Shp(Dataset):
    """stanfordnlp/SHP; keeps score ratios of at least `min_ratio` and at most `pairs_per_post` pairs a post."""

    subreddit: str = MISSING
    revision: str = MISSING
    min_ratio: float = MISSING
    pairs_per_post: int = MISSING


@dataclass
class Local(Dataset):
    """Your own file; `test_path` holds held-out rows, else `test_fraction` of the prompts is held out."""

    test_path: str | None = None
    test_fraction: float = MISSING


SCHEMAS: dict[str, type[Dataset]] = {"synthetic": Synthetic, "hh_rlhf": HhRlhf, "shp": Shp, "local": Local}
