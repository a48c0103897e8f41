"""Faults of every class planted in clean rows, in each shape and file format: all are found, none is invented.

A plant says what becomes of its row in `data.json`: `refused: NAME`, `noted: NAME` or `cut: NAME`. Whatever the
report says beyond what was planted fails the test.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_options import dataset, load_splits
from tokenizer_families import chatml

from dpo.data.prepare import prepare
from dpo.data.refusal import Reason
from dpo.data.sources.written_lists import READ
from dpo.errors import DataError

Row = dict[str, Any]
# A row as it goes into a file, or the bytes that stand in the file in its place.
Raw = Row | bytes
LONG = "alpha beta gamma delta " * 60
MAX_LENGTH = 200
COUNT = 120
INVALID = b"g\xff\xfed"


def talk(*texts: str) -> list[Row]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, texts, strict=False)]


def question(index: int) -> str:
    return f'Question {index}?\nWith ünïcode, "quotes" and a comma'


def good(index: int) -> str:
    return f"A good answer, number {index}: café 🙂 </s>"


def bad(index: int) -> str:
    return f"Worse {index}\n\nin two paragraphs"


def clean_text(index: int) -> Row:
    return {"system": "", "prompt": question(index), "chosen": good(index), "rejected": bad(index)}


def clean_talk(index: int) -> Row:
    lead = (f"Hello {index}", "Hi.", question(index))
    return {"chosen": talk(*lead, good(index)), "rejected": talk(*lead, bad(index))}


def clean_choice(index: int) -> Row:
    answers = (good(index), bad(index)) if index % 2 else (bad(index), good(index))
    return {"prompt": question(index), "response_a": answers[0], "response_b": answers[1], "label": "ba"[index % 2]}


def clean_votes(index: int) -> Row:
    row = {"post_id": f"p{index}", "domain": "d", "history": question(index), "labels": 1, "score_ratio": 3.0}
    return {**row, "human_ref_A": good(index), "human_ref_B": bad(index), "score_A": 9, "score_B": 3}


# How a file holds rows.


def jsonl(rows: list[Raw]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def cells(row: Row) -> bytes:
    text = io.StringIO()
    values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in row.values()]
    csv.writer(text).writerow(values)
    return text.getvalue().encode()


def as_csv(rows: list[Raw]) -> bytes:
    header = next(row for row in rows if isinstance(row, dict))
    return ",".join(header).encode() + b"\r\n" + b"".join(r if isinstance(r, bytes) else cells(r) for r in rows)


def parquet(rows: list[Raw]) -> bytes:
    columns = {}
    for name in next(row for row in rows if isinstance(row, dict)):
        raw = [row[name] for row in rows if isinstance(row, dict)]
        if any(isinstance(value, (str, bytes)) for value in raw):
            values = [value.encode() if isinstance(value, str) else value for value in raw]
            binary = pyarrow.array(values, pyarrow.binary())
            # A string column as a careless writer leaves it: its bytes are not checked.
            columns[name] = pyarrow.Array.from_buffers(pyarrow.string(), len(values), binary.buffers())
        else:
            columns[name] = pyarrow.array(raw)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


FORMATS: dict[str, Callable[[list[Raw]], bytes]] = {".jsonl": jsonl, ".csv": as_csv, ".parquet": parquet}

# A plant turns a clean row, and another clean row that stands before it, into a bad one.
Plant = Callable[[Row, Row], Raw]


def refused(reason: Reason, plant: Plant) -> tuple[list[str], Plant]:
    return [f"refused: {reason.value}"], plant


def replaced(**values: Any) -> Plant:
    return lambda row, _: {**row, **values}


def ends(side: str, **values: Any) -> Plant:
    """The last message of one side, changed."""
    return lambda row, _: {**row, side: [*row[side][:-1], {**row[side][-1], **values}]}


def asks(text: str) -> Plant:
    """The last user turn of both sides, changed."""
    return lambda row, _: {
        side: [*row[side][:-2], {"role": "user", "content": text}, row[side][-1]] for side in ("chosen", "rejected")
    }


Plants = dict[str, tuple[list[str], Plant]]
TEXT: Plants = {
    "empty prompt": refused(Reason.empty_prompt, replaced(prompt=" \n")),
    "empty chosen": refused(Reason.empty_chosen, replaced(chosen="")),
    "empty rejected": refused(Reason.empty_rejected, replaced(rejected="\t ")),
    "identical": refused(Reason.identical, lambda row, _: {**row, "rejected": row["chosen"].replace(" ", "  ") + "\n"}),
    "duplicate": refused(Reason.duplicate, lambda row, other: {**other, "chosen": other["chosen"] + " "}),
    "leak": refused(Reason.leak, replaced(prompt=question(1000) + " ")),
    "no room": refused(Reason.completion_lost, replaced(system=LONG)),
    "equal once cut": refused(Reason.equal_after_cutting, replaced(chosen=LONG + "a", rejected=LONG + "b")),
    "same prompt": (["noted: prompt seen before"], lambda row, other: {**row, "prompt": other["prompt"]}),
    "control token": (["noted: control token typed in text"], replaced(chosen="stop <|im_end|> here")),
    "long prompt": (["cut: last user turn"], lambda row, _: {**row, "prompt": row["prompt"] + LONG}),
    "long chosen": (["cut: chosen"], replaced(chosen=LONG)),
    "long rejected": (["cut: rejected"], replaced(rejected=LONG)),
    "all long": (
        ["cut: last user turn", "cut: chosen"],
        lambda row, _: {**row, "prompt": LONG + row["prompt"], "chosen": LONG},
    ),
}
NULLS: Plants = {
    "null prompt": refused(Reason.null, replaced(prompt=None)),
    "null rejected": refused(Reason.null, replaced(rejected=None)),
}
TALK: Plants = {
    "other prompt": refused(Reason.prompts_differ, lambda row, other: {**row, "rejected": other["rejected"]}),
    "fewer turns": refused(Reason.prompts_differ, lambda row, _: {**row, "rejected": row["rejected"][2:]}),
    "unknown role": refused(Reason.roles, ends("chosen", role="wizard")),
    "a call without a name": refused(Reason.missing, ends("chosen", tool_calls=[{"arguments": "{}"}])),
    "more beside the text": refused(Reason.field, ends("chosen", annotations=[{"url": "x"}])),
    "user has the last word": refused(Reason.roles, ends("rejected", role="user")),
    "empty chosen": refused(Reason.empty_chosen, ends("chosen", content=" ")),
    "empty rejected": refused(Reason.empty_rejected, ends("rejected", content="")),
    "null content": refused(Reason.null, ends("rejected", content=None)),
    "identical": refused(Reason.identical, lambda row, _: {**row, "rejected": row["chosen"]}),
    "duplicate": refused(Reason.duplicate, lambda _, other: dict(other)),
    "leak": refused(Reason.leak, lambda *_: clean_talk(1000)),
    "old turns": (
        ["cut: oldest turns"],
        lambda row, _: {side: [*talk(LONG, "Yes."), *row[side]] for side in ("chosen", "rejected")},
    ),
    "long question": (["cut: last user turn", "cut: oldest turns"], asks(LONG)),
    "control token": (["noted: control token typed in text"], asks("Say <|im_start|>system")),
    "two of one role": (
        ["noted: turns of one role joined"],
        lambda row, _: {side: [row[side][0], *row[side]] for side in ("chosen", "rejected")},
    ),
}
CHOICE: Plants = {
    "unknown label": refused(Reason.label_unknown, replaced(label="maybe")),
    "tie": refused(Reason.tie, replaced(label="tie")),
    "empty prompt": refused(Reason.empty_prompt, replaced(prompt="")),
    "duplicate": refused(
        Reason.duplicate,
        lambda _, o: {
            **o,
            "response_a": o["response_b"],
            "response_b": o["response_a"],
            "label": "ab"[o["label"] == "a"],
        },
    ),
}
VOTES: Plants = {
    "weak": refused(Reason.weak, replaced(score_ratio=1.5)),
    "tie": refused(Reason.tie, replaced(score_B=9)),
    "label against votes": refused(Reason.label_disagrees, replaced(labels=0)),
    "ratio below one": refused(Reason.label_disagrees, replaced(score_ratio=0.3)),
    "unknown label": refused(Reason.label_unknown, replaced(labels=2)),
    "not a number": refused(Reason.not_text, replaced(score_ratio=float("nan"))),
    "null comment": refused(Reason.null, replaced(human_ref_B=None)),
    "second of a post": refused(Reason.post_cap, lambda row, other: {**row, "post_id": other["post_id"]}),
}
# Of two opposite rows both go.
OPPOSITES: dict[str, Callable[[Row], Row]] = {
    "text": lambda row: {**row, "chosen": row["rejected"], "rejected": row["chosen"]},
    "talk": lambda row: {**row, "chosen": row["rejected"], "rejected": row["chosen"]},
    "choice": lambda row: {**row, "label": "ab"[row["label"] == "a"]},
    "votes": lambda row: {**row, "human_ref_A": row["human_ref_B"], "human_ref_B": row["human_ref_A"]},
}
CLEAN = {"text": clean_text, "talk": clean_talk, "choice": clean_choice, "votes": clean_votes}
PLANTS: dict[tuple[str, str], Plants] = {
    ("text", ".jsonl"): {
        **TEXT,
        **NULLS,
        "cut off": refused(Reason.unparsable, lambda row, _: json.dumps(row).encode()[:30]),
        "an array": refused(Reason.unparsable, lambda *_: b"[1, 2]"),
        "too deep": refused(Reason.unparsable, lambda *_: b"[" * 100_000),
        "missing": refused(Reason.missing, lambda row, _: {k: v for k, v in row.items() if k != "rejected"}),
        "a number": refused(Reason.not_text, replaced(chosen=42)),
        "an object": refused(Reason.not_text, replaced(prompt={"text": "x"})),
        "lone surrogate": refused(Reason.lone_surrogate, replaced(chosen="a \ud83d b")),
        "invalid": refused(Reason.invalid_utf8, lambda row, _: json.dumps(row).encode().replace(b"good", INVALID)),
    },
    ("text", ".csv"): {
        **TEXT,
        "too few cells": refused(Reason.unparsable, lambda *_: b"only,two\r\n"),
        "too many cells": refused(Reason.unparsable, lambda *_: b"one,two,three,four,five\r\n"),
        "bad quotes": refused(Reason.unparsable, lambda *_: b'"a"b,c,d,e\r\n'),
        "invalid": refused(Reason.invalid_utf8, lambda row, _: cells(row).replace(b"good", INVALID)),
    },
    ("text", ".parquet"): {
        **TEXT,
        **NULLS,
        "invalid": refused(Reason.invalid_utf8, replaced(chosen=INVALID)),
        "surrogate bytes": refused(Reason.invalid_utf8, replaced(rejected=b"a \xed\xa0\xbd b")),
    },
    ("talk", ".jsonl"): {**TALK, "not a list": refused(Reason.roles, replaced(chosen=[]))},
    ("talk", ".csv"): TALK,
    ("talk", ".parquet"): TALK,
    ("choice", ".jsonl"): {**CHOICE, "a number": refused(Reason.label_unknown, replaced(label=1))},
    ("choice", ".csv"): CHOICE,
    ("choice", ".parquet"): {**CHOICE, "null": refused(Reason.null, replaced(label=None))},
    ("votes", ".jsonl"): VOTES,
    ("votes", ".parquet"): VOTES,
}


def planted(shape: str, kind: str, seed: int) -> tuple[list[Raw], dict[str, list[int]]]:
    """Rows with each fault planted at two random places, and where each entry of the report must point."""
    plants = [*PLANTS[shape, kind].values()] * 2
    draw = random.Random(seed)
    rows: list[Raw] = [CLEAN[shape](index) for index in range(COUNT)]
    # Rows of the first half stay as they are: each plant gets one of its own to copy from.
    source, *copied = draw.sample(range(COUNT // 2), len(plants) + 1)
    opposite, *places = draw.sample(range(COUNT // 2, COUNT), len(plants) + 1)
    rows[opposite] = OPPOSITES[shape](CLEAN[shape](source))
    expected = {"refused: contradicts another pair": [source, opposite]}
    for (entries, plant), place, other in zip(plants, places, copied, strict=True):
        rows[place] = plant(CLEAN[shape](place), CLEAN[shape](other))
        for entry in entries:
            expected.setdefault(entry, []).append(place)
    return rows, {entry: sorted(places) for entry, places in expected.items()}


def found(report: dict[str, Any], shape: str, kind: str) -> dict[str, list[int]]:
    """What the report says of the rows to train on, in the words of the plants.

    That a message list was read from a cell's text is said of CSV, and no fault.
    """
    assert bool(report["noted"].get(READ)) == ((shape, kind) == ("talk", ".csv"))
    report = {**report, "noted": {name: rows for name, rows in report["noted"].items() if name != READ}}
    entries = {f"refused: {name}": rows["ids"] for name, rows in report["refused"].items()}
    entries |= {f"noted: {name}": rows["ids"] for name, rows in report["noted"].items()}
    entries |= {f"cut: {name}": [*cut["tokens_by_id"]] for name, cut in report["truncation"].items()}
    assert all(":train:" in row_id for ids in entries.values() for row_id in ids)
    return {name: sorted(int(i.rpartition(":")[2]) for i in ids) for name, ids in entries.items() if ids}


def write(folder: Path, shape: str, kind: str, rows: list[Raw], zipped: bool = False) -> Any:
    """The dataset config of a folder with these rows to train on and two clean ones held out."""
    for split, held in (("train", rows), ("test", [CLEAN[shape](1000), CLEAN[shape](1001)])):
        content = FORMATS[kind](held)
        path = folder / f"{split}{kind}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return lambda **values: dataset(
        "shp" if shape == "votes" else "local",
        path=str(folder), dev_fraction=0.0, max_length=MAX_LENGTH, min_prompt_tokens=80, **values,
        **({"pairs_per_post": 1} if shape == "votes" else {}),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("shape", "kind"), PLANTS)
def test_each_fault_is_found_and_none_invented(shape: str, kind: str, seed: int, tmp_path: Path) -> None:
    rows, expected = planted(shape, kind, seed)
    (folder := tmp_path / "rows").mkdir()
    config = write(folder, shape, kind, rows, zipped=bool(seed))
    report = prepare(config(on_bad="drop"), chatml(), tmp_path / "cache").report
    assert found(report, shape, kind) == expected
    gone = {place for entry, places in expected.items() if entry.startswith("refused") for place in places}
    assert report["rows"] == {"train": COUNT, "dev": 0, "test": 2}
    assert report["kept"] == {"train": COUNT - len(gone), "dev": 0, "test": 2}
    faults = {
        place: reason
        for reason in Reason
        if reason.structural
        for place in expected.get(f"refused: {reason.value}", [])
    }
    with pytest.raises(DataError) as raised:
        prepare(config(on_bad="error"), chatml(), tmp_path / "cache")
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    for line, place in zip(lines, sorted(faults), strict=False):
        assert re.match(rf"train\{kind}{'.gz' if seed else ''}:{place}(/[^:]+)?: {faults[place].value}", line)
    assert f"({len(faults)} bad of {COUNT + 2} rows" in lines[-1]


@pytest.mark.parametrize(("shape", "kind"), PLANTS)
def test_a_clean_set_has_no_fault(shape: str, kind: str, tmp_path: Path) -> None:
    (folder := tmp_path / "rows").mkdir()
    config = write(folder, shape, kind, [CLEAN[shape](index) for index in range(COUNT)])
    data = prepare(config(on_bad="error"), chatml(), tmp_path / "cache")
    assert found(data.report, shape, kind) == {}
    assert data.report["kept"] == {"train": COUNT, "dev": 0, "test": 2}
    texts = [(pair.prompt[-1].content, pair.chosen, pair.rejected) for pair in data.pairs["train"]]
    assert texts == [(question(index), good(index), bad(index)) for index in range(COUNT)]


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_column_that_is_not_there_is_missing_in_every_row(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}"
    path.write_bytes(FORMATS[kind]([{"prompt": question(i), "chosen": good(i)} for i in range(5)]))
    with pytest.raises(DataError, match=rf"rows\{kind}:0/rejected: missing.*\n(.*\n)*.*5 bad of 5 rows"):
        load_splits(dataset("local", path=str(path)))


def test_a_column_of_numbers_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([{**clean_text(i), "chosen": i} for i in range(5)]))
    with pytest.raises(
        DataError, match=r"rows\.parquet:0/chosen: not text: int is not a message list\n(.*\n)*.*5 bad of 5 rows"
    ):
        load_splits(dataset("local", path=str(path)))


def test_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(jsonl([clean_text(0), {**clean_text(1), "chosen": None}]))
    with pytest.raises(DataError) as raised:
        load_splits(dataset("local", path=str(path)))
    assert str(raised.value) == (
        "pairs.jsonl:1/chosen: null, line 2 (1 bad of 2 rows; dataset.on_bad=drop drops and counts them)"
    )


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(jsonl([clean_text(index) for index in range(COUNT)]))
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
