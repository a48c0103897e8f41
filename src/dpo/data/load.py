"""Rows of a source become three lists of pairs that share no prompt, and a report that accounts for every row."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dpo.caches.folder import cache_folder
from dpo.config.datasets import ByColumns, Hub, HubDataset, Local, Rows, Shp
from dpo.config.nearest import nearest
from dpo.data.checks import Seen, held_out
from dpo.data.pair import Pair
from dpo.data.pair_file import PairFile, PairWriter
from dpo.data.places.hub import fetch
from dpo.data.places.layout import find_files
from dpo.data.refusal import Reason, Refusal
from dpo.data.report import SPLITS, DataReport, Faults
from dpo.data.rows.files import editor_line, read_rows
from dpo.data.sources import SOURCES
from dpo.data.sources.local import check_columns
from dpo.errors import ConfigError, DataError


@dataclass(frozen=True)
class Files:
    """Where rows come from: files of each split, the words for it, the hub commit and the licence if there is one."""

    splits: dict[str, list[Path]]
    origin: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Splits:
    """Pairs of each split, in source order, and what became of every row. Pairs are read from disk as asked for."""

    train: PairFile
    dev: PairFile
    test: PairFile
    report: DataReport


def locate(dataset: Rows) -> Files:
    """Find or download the files of a dataset.

    Raises DataError for a path without rows, NetworkError for a hub out of reach, ConfigError for a part of the
    dataset that does not exist.
    """
    if dataset.source not in SOURCES:
        raise ConfigError(f"dataset.source={dataset.source}: no such source{nearest(dataset.source, SOURCES)}")
    if dataset.dev_fraction + dataset.test_fraction >= 1:
        raise ConfigError("dataset.dev_fraction and dataset.test_fraction: nothing is left to train on")
    if isinstance(dataset, ByColumns) and (fault := check_columns(dataset.columns)):
        raise ConfigError(fault)
    if isinstance(dataset, ByColumns) and dataset.label_a == dataset.label_b:
        raise ConfigError(f"dataset.label_a and dataset.label_b: both are {dataset.label_a}; which answer is better?")
    if isinstance(dataset, Local) and dataset.path is None:
        raise ConfigError("dataset.path: needs a value with dataset=local, as in dataset.path=pairs.jsonl")
    if dataset.path is not None:
        splits = find_files(Path(dataset.path), dataset)
        if isinstance(dataset, Local):
            for split, path in (("dev", dataset.dev_path), ("test", dataset.test_path)):
                if path is not None:
                    splits[split] = find_files(Path(path), dataset)["train"]
        return Files(splits, dataset.path)
    if isinstance(dataset, HubDataset | Hub):
        found = fetch(dataset, cache_folder("data"))
        return Files(found.files, f"{dataset.repository}@{dataset.revision}", found.commit, found.licence)
    folder = Path(str(resources.files("dpo.data.synthetic")))
    return Files({split: [folder / f"{split}.jsonl"] for split in SPLITS}, "the package's own rows")


def load_files(dataset: Rows, files: Files, folder: Path) -> Splits:
    """Read, convert and check every row; `folder` receives one file of pairs a split.

    No seed enters: what is held out depends on the text alone. Raises DataError when rows are bad and `on_bad` is
    error, or when nothing is left to train on.
    """
    return _Loading(dataset, files, folder).run()


def nothing_to_train_on(report: DataReport, faults: Faults) -> DataError:
    """The error of a dataset that leaves no training pair, with what can be done about it."""
    held = report.kept.get("dev", 0) + report.kept.get("test", 0)
    what = "\n".join([f"{report.origin}: no pair to train on", report.summary(), *([] if held else faults.lines[:1])])
    if not held:
        return DataError(what)
    return DataError(
        f"{what}; held out: {report.kept['dev']} dev, {report.kept['test']} test\n"
        "whole prompts are held out, by a hash: give more prompts, or dataset.dev_fraction=0 dataset.test_fraction=0"
    )


class _Loading:
    """One pass over all rows, held-out splits first, so that a prompt in two splits is dropped from train."""

    def __init__(self, dataset: Rows, files: Files, folder: Path) -> None:
        self.dataset = dataset
        self.files = files
        self.report = DataReport(dataset.source, files.origin, files.revision, files.licence)
        self.faults = Faults()
        self.seen = Seen(dataset.pairs_per_post if isinstance(dataset, Shp) else None)
        self.writers = {split: PairWriter(folder / f"{split}.jsonl") for split in SPLITS}
        self.to_pair = SOURCES[dataset.source]
        self.kept = dict.fromkeys(SPLITS, 0)
        # Of each pair that `seen` admitted: its split and its place there; and which went with a contradiction.
        self.places: list[tuple[str, int]] = []
        self.dead: set[int] = set()

    def run(self) -> Splits:
        try:
            for split in reversed(SPLITS):
                self._read(split)
        finally:
            for writer in self.writers.values():
                writer.close()
        self.faults.settle(self.dataset.on_bad, sum(self.report.rows.values()))
        self.report.notes["prompt seen before"] = self.seen.repeated_prompts
        train, dev, test = (self._pairs(split) for split in SPLITS)
        splits = Splits(train, dev, test, self.report)
        if not splits.train:
            raise nothing_to_train_on(self.report, self.faults)
        return splits

    def _read(self, split: str) -> None:
        # A single file keeps its own row numbers; those of further files of a split count on.
        offset = 0
        for path in self.files.splits.get(split, []):
            last = -1
            for last, row in read_rows(path):
                self._take(path, last, f"{self.dataset.source}:{split}:{offset + last}", row, split)
                if self.dataset.limit is not None and self.kept[split] >= self.dataset.limit:
                    self.report.stopped_at_limit = True
                    return
            offset += last + 1

    def _take(self, path: Path, number: int, row_id: str, row: Any, read_from: str) -> None:
        self.report.rows[read_from] = self.report.rows.get(read_from, 0) + 1
        result = row if isinstance(row, Refusal) else self.to_pair(row, row_id, self.dataset)
        if isinstance(result, Refusal):
            self.report.refuse(row_id, result.reason)
            if result.reason.structural:
                self.faults.add(path.name, number, result, lambda: editor_line(path, number))
            return
        split = self._split(result, read_from)
        refusal, earlier = self.seen.admit(result, split)
        if earlier is not None and earlier not in self.dead:
            self.dead.add(earlier)
            self.kept[self.places[earlier][0]] -= 1
            self.report.refuse(self.seen.ids[earlier], Reason.contradiction)
        if refusal is not None:
            self.report.refuse(row_id, refusal.reason)
            return
        self.places.append((split, len(self.writers[split].starts)))
        self.writers[split].write(result)
        self.kept[split] += 1
        for note in result.notes:
            self.report.note(row_id, note)

    def _split(self, pair: Pair, read_from: str) -> str:
        if read_from != "train":
            return read_from
        given = self.files.splits
        dev = 0.0 if "dev" in given else self.dataset.dev_fraction
        test = 0.0 if "test" in given else self.dataset.test_fraction
        return held_out(pair.group, dev, test) if dev or test else "train"

    def _pairs(self, split: str) -> PairFile:
        writer = self.writers[split]
        gone = {place for index in self.dead for where, place in [self.places[index]] if where == split}
        self.report.kept[split] = len(writer.starts) - len(gone)
        starts = array("q", (start for place, start in enumerate(writer.starts) if place not in gone))
        return PairFile(writer.path, starts)
