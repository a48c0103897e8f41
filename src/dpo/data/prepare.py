"""From a dataset config and a tokenizer to token ids on disk, with a report that accounts for every row."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import dpo
from dpo.caches.entry import file_digest, get_or_build
from dpo.caches.folder import cache_folder
from dpo.config.checks.mixture import parts_of
from dpo.config.datasets import Dataset, Mixture, Rows
from dpo.data.control_tokens import Codec
from dpo.data.load import Files, Splits, load_files, locate, nothing_to_train_on
from dpo.data.measured import measured
from dpo.data.mixture import mix, mixture_key
from dpo.data.pair_file import PairFile, PairWriter, from_line
from dpo.data.parallel import encode_all
from dpo.data.places.layout import unnamed
from dpo.data.refusal import Refusal
from dpo.data.report import SPLITS, DataReport, Faults
from dpo.data.rows.files import file_format
from dpo.data.rows.open_file import packing
from dpo.data.single import said
from dpo.data.token_file import TokenFile, TokenWriter
from dpo.data.tokens import Encoder
from dpo.records.files import write_json

# Raised when the same rows would give other ids or another report, so that entries of older versions are not used.
VERSION = 9
# Keys that say where rows come from or are judged elsewhere; the rows themselves are in the key by their content.
PLACES = tuple(
    "path dev_path test_path hub revision id config split dev_split test_split judges max_new_tokens".split()
)


@dataclass(frozen=True)
class Prepared:
    """Token pairs of each split, read from disk as asked for; `pairs[split][i]` is the text of `split[i]`.

    `report` is data.json. `fingerprint` covers token ids, lengths and strengths of every pair in order, and nothing
    else: not beta, seed, rank or where the rows came from. `cached` says whether all this was found ready.
    """

    train: TokenFile
    dev: TokenFile
    test: TokenFile
    pairs: dict[str, PairFile]
    report: dict[str, Any]
    fingerprint: str
    folder: Path
    cached: bool


def prepare(dataset: Dataset, tokenizer: Any, cache_dir: Path | None = None) -> Prepared:
    """Load, check and encode a dataset, or find it done in the cache (default: the folder $DPO_CACHE names).

    No seed enters. Raises DataError when rows are bad and `on_bad` is error, or nothing is left to train on;
    NetworkError when the hub is needed and out of reach; ConfigError for a template that cannot be used.
    """
    root = cache_folder("tokens") if cache_dir is None else cache_dir
    if isinstance(dataset, Mixture):
        parts = {name: prepare(part, tokenizer, root) for name, part in parts_of(dataset).items()}
        entry = mixture_key(VERSION, dataset, parts), lambda into: mix(dataset, parts, Codec(tokenizer), into)
        return _opened(*get_or_build(root, *entry, _say))
    assert isinstance(dataset, Rows)
    files = locate(dataset)
    encoder = Encoder(
        tokenizer,
        dataset.max_length,
        dataset.keep,
        dataset.min_prompt_tokens,
        dataset.chat_template_kwargs,
        dataset.count_tool_tokens,
    )
    key = cache_key(dataset, files, encoder)
    data = _opened(*get_or_build(root, key, lambda into: _build(dataset, files, encoder, into), _say))
    data.report.update(origin=files.origin, revision=files.revision, licence=files.licence)
    data.report["warnings"] += unnamed(dataset.path, files.splits)
    return data


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _opened(folder: Path, cached: bool) -> Prepared:
    report = json.loads((folder / "report.json").read_text())
    train, dev, test = (TokenFile(folder, split) for split in SPLITS)
    pairs = {split: PairFile(folder / f"{split}.jsonl") for split in SPLITS}
    return Prepared(train, dev, test, pairs, report, report["fingerprint"], folder, cached)


def cache_key(dataset: Rows, files: Files, encoder: Encoder) -> str:
    """Hex digest of everything that decides the entry: rows by content, recipe, tokenizer and template."""
    recipe = {name: value for name, value in asdict(dataset).items() if name not in PLACES}
    rows = {
        split: [(file_format(path), packing(path), file_digest(path)) for path in paths]
        for split, paths in files.splits.items()
    }
    facts = {"version": VERSION, "recipe": recipe, "rows": rows, "encoder": encoder.key}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:40]


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else str(value)


def _build(dataset: Rows, files: Files, encoder: Encoder, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rows-", dir=folder) as aside:
        splits = load_files(dataset, files, Path(aside))
        writer = TokenWriter(folder)
        faults = Faults()
        for split in SPLITS:
            _encode_split(split, getattr(splits, split), splits.report, encoder, writer, folder, faults)
            writer.end_split(split)
        fingerprint = writer.close()
    faults.settle(dataset.on_bad, sum(splits.report.rows.values()))
    if not splits.report.kept["train"]:
        raise nothing_to_train_on(splits.report, faults)
    write_json(folder / "report.json", _report(dataset, splits, encoder, folder, fingerprint))


def _encode_split(
    split: str,
    pairs: PairFile,
    report: DataReport,
    encoder: Encoder,
    writer: TokenWriter,
    folder: Path,
    faults: Faults,
) -> None:
    kept = PairWriter(folder / f"{split}.jsonl")
    try:
        for start, results in encode_all(encoder, pairs):
            for index, result in enumerate(results, start):
                line = pairs.line(index)
                if isinstance(result, Refusal):
                    row_id = from_line(line).id
                    report.refuse(row_id, result.reason)
                    report.kept[split] -= 1
                    if result.reason.structural:
                        faults.add(*_place(row_id), result)
                else:
                    writer.write(result)
                    kept.write_line(line)
    finally:
        kept.close(sync=True)


def _place(row_id: str) -> tuple[str, str]:
    source_and_split, _, row = row_id.rpartition(":")
    return source_and_split, row


def _report(dataset: Rows, splits: Splits, encoder: Encoder, folder: Path, fingerprint: str) -> dict[str, Any]:
    report, found = splits.report, measured(folder, encoder.codec)
    for name, ids in encoder.cuts.notes().items():
        report.notes[name] = [*report.notes.get(name, []), *ids]
    warnings = [*encoder.warnings, *said(found["single_answers"])]
    return {
        **report.as_dict(),
        "fingerprint": fingerprint,
        "max_length": dataset.max_length,
        **found,
        "truncation": encoder.cuts.as_dict(),
        "warnings": [*warnings, *_rendered_already(encoder, sum(report.kept.values()))],
        "template": {
            "sha256": hashlib.sha256(encoder.template.source.encode()).hexdigest(),
            "kwargs": encoder.template.kwargs,
            "date": encoder.template.date,
            "end_of_turn": encoder.end_id,
            "end_of_turn_appended": encoder.appended_end,
        },
        "parts": None,
        "version": dpo.__version__,
    }


def _rendered_already(encoder: Encoder, kept: int) -> list[str]:
    typed = len(encoder.cuts.control_text)
    if typed < 10 or 2 * typed < kept:
        return []
    return [
        f"control tokens stand in {typed} of {kept} pairs and are read as text: give texts without a template's marks"
    ]
