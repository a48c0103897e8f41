"""Typed schema of the dataset group: one dataclass per option that has keys of its own. Values live in conf/dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class OnBad(Enum):
    """What to do with a row that fails a check: stop with its name, or drop and count it."""

    error = "error"
    drop = "drop"


class Keep(Enum):
    """Which end of the last user turn stays when it has to be shortened."""

    start = "start"
    end = "end"


@dataclass
class Dataset:
    """Keys every dataset has. `path` takes rows of the same schema from a file or folder instead of the hub."""

    source: str = MISSING
    path: str | None = None
    max_length: int = MISSING
    limit: int | None = None
    soft_labels: bool = MISSING
    count_tool_tokens: bool = MISSING
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    judges: list[str] = MISSING
    max_new_tokens: int = MISSING


@dataclass
class Rows(Dataset):
    """Keys of a dataset that reads rows itself."""

    min_prompt_tokens: int = MISSING
    keep: Keep = MISSING
    on_bad: OnBad = MISSING
    dev_fraction: float = MISSING
    test_fraction: float = MISSING


@dataclass
class Synthetic(Rows):
    """The preference data shipped in the package."""


@dataclass
class HubDataset(Rows):
    """A dataset of the hub: repository `hub` at `revision` (a branch, tag or commit)."""

    hub: str = MISSING
    revision: str = MISSING

    @property
    def repository(self) -> str:
        """Its name on the hub."""
        return self.hub


@dataclass
class HhRlhf(HubDataset):
    """Anthropic/hh-rlhf (arXiv:2204.05862); `subset` is a folder of the repository, or `all`."""

    subset: str = MISSING


@dataclass
class Shp(HubDataset):
    """stanfordnlp/SHP (arXiv:2110.08420); keeps score ratios of at least `min_ratio`, `pairs_per_post` pairs a post."""

    subreddit: str = MISSING
    min_ratio: float = MISSING
    pairs_per_post: int | None = MISSING


@dataclass
class WebGpt(HubDataset):
    """openai/webgpt_comparisons (arXiv:2112.09332)."""


@dataclass
class UltraFeedback(HubDataset):
    """UltraFeedback, binarized (arXiv:2310.01377, arXiv:2310.16944): either of its two forms on the hub."""


@dataclass
class HelpSteer3(HubDataset):
    """nvidia/HelpSteer3, its `preference` part (arXiv:2505.11475)."""


@dataclass
class ByColumns(Rows):
    """Rows known by their columns. `columns` maps our names to theirs; `label_a`, `label_b` are values of `label`."""

    columns: dict[str, str] = field(default_factory=dict)
    label_a: str = MISSING
    label_b: str = MISSING


@dataclass
class Local(ByColumns):
    """Your own files."""

    dev_path: str | None = None
    test_path: str | None = None


@dataclass
class Hub(ByColumns):
    """Any dataset of the hub: repository `id` at `revision`, its configuration `config`, its split `split`.

    `split` is trained on; null takes the one named train. `dev_split` and `test_split` are held out; null takes those
    that are named like it (test_prefs beside train_prefs), or holds out by prompt.
    """

    id: str = MISSING
    revision: str = MISSING
    config: str | None = None
    split: str | None = None
    dev_split: str | None = None
    test_split: str | None = None

    @property
    def repository(self) -> str:
        """Its name on the hub."""
        return self.id


@dataclass
class Mixture(Dataset):
    """Several datasets in one: options of this group, or names of `overrides`, which gives values of single parts.

    `weights` are the parts' shares of the training pairs, drawn without replacement by a hash; null takes all pairs of
    each. Keys that are null here are each part's own.
    """

    parts: list[str] = MISSING
    weights: list[float] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    min_prompt_tokens: int | None = None
    keep: Keep | None = None
    on_bad: OnBad | None = None
    dev_fraction: float | None = None
    test_fraction: float | None = None


SCHEMAS: dict[str, type[Dataset]] = {
    "synthetic": Synthetic,
    "hh_rlhf": HhRlhf,
    "shp": Shp,
    "webgpt": WebGpt,
    "ultrafeedback": UltraFeedback,
    "helpsteer3": HelpSteer3,
    "local": Local,
    "hub": Hub,
    "mixture": Mixture,
}
