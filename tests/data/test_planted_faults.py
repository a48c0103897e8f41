"""Faults of every class planted in clean rows, in each file format: all are found, none is invented."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_options import dataset

from dpo.data.load import load_splits
from dpo.data.refusal import Reason
from dpo.errors import DataError

Row = dict[str, Any]
COUNT = 60


def clean(index: int) -> Row:
    return {
        "prompt": f'Question {index}?\nWith ünïcode, "quotes" and a comma',
        "chosen": f"A good answer, number {index}: café 🙂 </s>",
        "rejected": f"Worse {index}\n\nin two paragraphs",
    }


# How a file holds rows: bytes of one file from rows, where a row may also be raw bytes that stand for themselves.


def jsonl(rows: list[Row | bytes]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def cells(row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow([row[name] for name in ("prompt", "chosen", "rejected")])
    return text.getvalue().encode()


def as_csv(rows: list[Row | bytes]) -> bytes:
    return b"prompt,chosen,rejected\r\n" + b"".join(row if isinstance(row, bytes) else cells(row) for row in rows)


def parquet(rows: list[Row | bytes]) -> bytes:
    columns = []
    for name in ("prompt", "chosen", "rejected"):
        raw = [row[name] for row in rows if isinstance(row, dict)]
        values = [value.encode() if isinstance(value, str) else value for value in raw]
        binary = pyarrow.array(values, pyarrow.binary())
        # A string column as a careless writer leaves it: its bytes are not checked.
        columns.append(pyarrow.Array.from_buffers(pyarrow.string(), len(values), binary.buffers()))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(("prompt", "chosen", "rejected"), columns, strict=True))), file)
    return file.getvalue()


FORMATS: dict[str, Callable[[list[Row | bytes]], bytes]] = {".jsonl": jsonl, ".csv": as_csv, ".parquet": parquet}

Plant = Callable[[Row], Row | bytes]
EVERYWHERE: dict[str, tuple[Reason, Plant]] = {
    "empty prompt": (Reason.empty_prompt, lambda row: {**row, "prompt": " \n"}),
    "empty chosen": (Reason.empty_chosen, lambda row: {**row, "chosen": ""}),
    "empty rejected": (Reason.empty_rejected, lambda row: {**row, "rejected": "\t "}),
    "identical": (Reason.identical, lambda row: {**row, "rejected": row["chosen"].replace(" ", "  ") + "\n"}),
}
NULLS: dict[str, tuple[Reason, Plant]] = {
    "null prompt": (Reason.null, lambda row: {**row, "prompt": None}),
    "null rejected": (Reason.null, lambda row: {**row, "rejected": None}),
}
PLANTS: dict[str, dict[str, tuple[Reason, Plant]]] = {
    ".jsonl": {
        **EVERYWHERE,
        **NULLS,
        "cut off": (Reason.unparsable, lambda row: json.dumps(row).encode()[:30]),
        "an array": (Reason.unparsable, lambda row: b"[1, 2]"),
        "too deep": (Reason.unparsable, lambda row: b"[" * 100_000),
        "missing": (Reason.missing, lambda row: {k: v for k, v in row.items() if k != "rejected"}),
        "a number": (Reason.not_text, lambda row: {**row, "chosen": 42}),
        "an object": (Reason.not_text, lambda row: {**row, "prompt": {"text": "x"}}),
        "lone surrogate": (Reason.lone_surrogate, lambda row: {**row, "chosen": "a \ud83d b"}),
        "invalid bytes": (Reason.invalid_utf8, lambda row: json.dumps(row).encode().replace(b"good", b"g\xff\xfed")),
        "role": (Reason.roles, lambda row: {**row, "prompt": [{"role": "wizard", "content": "x"}]}),
        "other prompt": (
            Reason.prompts_differ,
            lambda row: {
                **row,
                "chosen": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "x"}],
            },
        ),
        "label": (
            Reason.label_unknown,
            lambda row: {"prompt": row["prompt"], "response_a": "x", "response_b": "y", "label": "maybe"},
        ),
    },
    ".csv": {
        **EVERYWHERE,
        "too few cells": (Reason.unparsable, lambda row: b"only,two\r\n"),
        "too many cells": (Reason.unparsable, lambda row: b"one,two,three,four\r\n"),
        "bad quotes": (Reason.unparsable, lambda row: b'"a"b,c,d\r\n'),
        "invalid bytes": (Reason.invalid_utf8, lambda row: cells(row).replace(b"good", b"g\xff\xfed")),
    },
    ".parquet": {
        **EVERYWHERE,
        **NULLS,
        "invalid bytes": (Reason.invalid_utf8, lambda row: {**row, "chosen": b"g\xff\xfed"}),
        "surrogate bytes": (Reason.invalid_utf8, lambda row: {**row, "rejected": b"a \xed\xa0\xbd b"}),
    },
}


def planted(kind: str, seed: int) -> tuple[list[Row | bytes], dict[int, tuple[str, Reason]]]:
    """Rows with each class of fault planted twice at random places, and what is where."""
    rows: list[Row | bytes] = [clean(index) for index in range(COUNT)]
    places = random.Random(seed).sample(range(COUNT), 2 * len(PLANTS[kind]))
    faults = {}
    for place, (name, (reason, plant)) in zip(places, [*PLANTS[kind].items()] * 2, strict=True):
        rows[place] = plant(clean(place))
        faults[place] = (name, reason)
    return rows, faults


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_each_fault_is_found_and_none_invented(kind: str, zipped: bool, seed: int, tmp_path: Path) -> None:
    rows, faults = planted(kind, seed)
    path = tmp_path / f"rows{kind}{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(FORMATS[kind](rows)) if zipped else FORMATS[kind](rows))
    splits = load_splits(dataset("local", path=str(path), on_bad="drop"))
    expected: dict[str, list[int]] = {}
    for place, (_, reason) in sorted(faults.items()):
        expected.setdefault(reason.value, []).append(place)
    found = {reason: [int(i.split(":")[2]) for i in ids] for reason, ids in splits.report.refused.items()}
    assert found == expected
    assert sum(splits.report.kept.values()) == COUNT - len(faults)
    with pytest.raises(DataError) as raised:
        load_splits(dataset("local", path=str(path), on_bad="error"))
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    for line, place in zip(lines, sorted(faults), strict=False):
        assert line.startswith(f"{path.name}:{place}")
        assert f": {faults[place][1].value}" in line
    assert f"({len(faults)} bad of {COUNT} rows" in lines[-1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_clean_set_has_no_fault(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}"
    path.write_bytes(FORMATS[kind]([clean(index) for index in range(COUNT)]))
    splits = load_splits(dataset("local", path=str(path)))
    assert not splits.report.refused
    assert not splits.report.notes["prompt seen before"]
    assert sum(splits.report.kept.values()) == COUNT
    texts = {(p.prompt[0].content, p.chosen, p.rejected) for s in (splits.train, splits.dev, splits.test) for p in s}
    assert texts == {tuple(clean(index).values()) for index in range(COUNT)}


def test_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(jsonl([clean(0), {**clean(1), "chosen": None}]))
    with pytest.raises(DataError) as raised:
        load_splits(dataset("local", path=str(path)))
    assert str(raised.value) == (
        "pairs.jsonl:1/chosen: null (1 bad of 2 rows; dataset.on_bad=drop drops and counts them)"
    )


def test_duplicates_contradictions_and_leaks_between_rows(tmp_path: Path) -> None:
    rows: list[Row | bytes] = [clean(index) for index in range(20)]
    swapped = {**clean(4), "chosen": clean(4)["rejected"], "rejected": clean(4)["chosen"]}
    rows += [{**clean(3), "chosen": clean(3)["chosen"] + " "}, swapped, {**clean(5), "rejected": "another one"}]
    held: list[Row | bytes] = [clean(7), clean(100)]
    (tmp_path / "train.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "test.jsonl").write_bytes(jsonl(held))
    for on_bad in ("drop", "error"):  # none of these is a fault of a row
        splits = load_splits(dataset("local", path=str(tmp_path), dev_fraction=0.0, on_bad=on_bad))
        report = splits.report
        assert report.refused == {
            "duplicate pair": ["local:train:20"],
            "contradicts another pair": ["local:train:4", "local:train:21"],
            "prompt is held out": ["local:train:7"],
        }
        assert (report.duplicates, report.contradictions, report.leaks, report.dropped) == (1, 2, 1, 4)
        assert report.notes["prompt seen before"] == ["local:train:22"]
        assert report.rows == {"train": 23, "test": 2}
        assert report.kept == {"train": 19, "dev": 0, "test": 2}
        assert "local:train:4" not in [pair.id for pair in splits.train]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(jsonl([clean(index) for index in range(COUNT)]))
    for name, content, message in [
        ("cut.jsonl.gz", whole[: len(whole) // 2], "damaged gzip archive"),
        ("not.jsonl.gz", b"plain text", "damaged gzip archive"),
        ("bad.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("bad.json", b'[{"prompt": "x"', "unparsable"),
        ("rows.txt", b"", "not a data file"),
        ("empty.jsonl", b"", "no pair to train on"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_splits(dataset("local", path=str(path), on_bad="drop"))
    with pytest.raises(DataError, match="no such file or folder"):
        load_splits(dataset("local", path=str(tmp_path / "absent.jsonl")))
