"""Which files of a folder or hub repository hold which split of a dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dpo.config.datasets import Dataset, HhRlhf, Hub, Shp
from dpo.config.nearest import nearest
from dpo.data.places.repository import Card, choose_parts, read_card
from dpo.data.rows.files import file_format, known_format
from dpo.data.rows.open_file import check_file
from dpo.errors import ConfigError, DataError

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing", "heldout", "holdout"),
}
SPLIT_WORDS = {word: split for split, words in SPLITS.items() for word in words}
NOT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}


def split_of(name: str) -> str:
    """The split a file name speaks of, last word first and the file before its folders; train when it says nothing."""
    return _spoken_of(name) or "train"


def _spoken_of(name: str) -> str | None:
    for part in reversed(PurePosixPath(name).parts):
        for word in reversed(re.split(r"[^a-z]+", part.lower())):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def unnamed(path: str | None, splits: Mapping[str, Sequence[Path]]) -> list[str]:
    """A line on files of the folder `path` that are trained on though their names say no split, as others' do."""
    folder = Path(path or "").expanduser()
    if path is None or not folder.is_dir():
        return []
    names = [str(file.relative_to(folder)) for file in splits.get("train", ()) if file.is_relative_to(folder)]
    silent = [name for name in names if _spoken_of(name) is None]
    if not silent or len(silent) == sum(map(len, splits.values())):
        return []
    some = ", ".join(silent[:5]) + (", ..." if len(silent) > 5 else "")
    return [f"trained on, as its name says no split: {some}"]


def choose(names: Iterable[str], dataset: Dataset, card: Card) -> dict[str, list[str]]:
    """The files of each split, sorted, among relative path `names`; only the parts this dataset asks for. `card` is
    what the repository's own says."""
    files = [n for n in sorted(names) if file_format(Path(n)) and PurePosixPath(n).name not in NOT_DATA]
    files = [n for n in files if not any(part.startswith(".") for part in PurePosixPath(n).parts)]
    if isinstance(dataset, Hub):
        return choose_parts(files, dataset, card)
    files = _part(files, dataset)
    chosen: dict[str, list[str]] = {}
    for name in files:
        chosen.setdefault(split_of(name), []).append(name)
    return chosen


def _part(files: list[str], dataset: Dataset) -> list[str]:
    if isinstance(dataset, HhRlhf):
        files = [name for name in files if "redteamattempts" not in _plain(name)]
        return files if dataset.subset == "all" else _named(files, dataset.subset, "dataset.subset")
    if isinstance(dataset, Shp):
        return files if dataset.subreddit == "all" else _named(files, dataset.subreddit, "dataset.subreddit")
    if dataset.source == "ultrafeedback":
        return [name for name in files if "prefs" in PurePosixPath(name).name] or files
    if dataset.source == "helpsteer3":
        return [name for name in files if "preference" in PurePosixPath(name).parts] or files
    return files


def _named(files: list[str], part: str, key: str) -> list[str]:
    found = [
        name for name in files if _plain(part) in {_plain(step.split(".")[0]) for step in PurePosixPath(name).parts}
    ]
    if files and not found:
        known = sorted(
            {step.split(".")[0] for name in files for step in PurePosixPath(name).parts} - SPLIT_WORDS.keys()
        )
        raise ConfigError(f"{key}={part}: no such part{nearest(part, known)}")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_files(path: Path, dataset: Dataset) -> dict[str, list[Path]]:
    """Files of each split under `path`; a single file holds rows to train on, whatever its name.

    A folder may be one that `datasets` wrote with save_to_disk. Raises DataError for what cannot be read.
    """
    path = path.expanduser()
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"dataset.path={path}: no such file or folder")
        check_file(path)
        known_format(path)
        return {"train": [path]}
    names = [str(p.relative_to(path).as_posix()) for p in path.rglob("*") if p.is_file() and not _stale(p)]
    chosen = choose(names, dataset, read_card(path / "README.md"))
    if "train" not in chosen:
        raise DataError(f"{path}: no training rows in it; expected files like train.jsonl, .json, .csv or .parquet")
    return {split: [path / name for name in files] for split, files in chosen.items()}


def _stale(path: Path) -> bool:
    """Whether an Arrow file lies in a folder of save_to_disk without belonging to what was saved last."""
    state = path.parent / "state.json"
    if path.suffix.lower() != ".arrow" or not state.is_file():
        return False
    try:
        return path.name not in {file["filename"] for file in json.loads(state.read_text())["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(f"{state}: damaged; save the dataset again with save_to_disk") from None
