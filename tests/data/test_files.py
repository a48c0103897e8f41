"""Files of rows: no file and no row fills the memory or is misread without a word."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from data_options import dataset, load_splits

from dpo.data.places.layout import find_files
from dpo.data.refusal import Reason, Refusal
from dpo.data.rows import open_file
from dpo.data.rows.files import editor_line, read_rows
from dpo.data.synthetic.prompts import from_file
from dpo.errors import DataError
from dpo.evaluation.responses import read_responses

ROWS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """`rows` in the format the name of `path` speaks of."""
    kind = open_file.packing(path)
    inner = path.with_suffix("") if kind else path
    if inner.suffix in (".csv", ".tsv"):
        with inner.open("w", newline="") as file:
            out = csv.writer(file, delimiter="\t" if inner.suffix == ".tsv" else ",")
            out.writerows([rows[0].keys(), *(row.values() for row in rows)])
    elif inner.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), inner)
    elif inner.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(inner, table.schema) as out:
            out.write_table(table)
    elif inner.suffix == ".json":
        inner.write_text(json.dumps(rows, indent=1))
    else:
        inner.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == ".gz":
        path.write_bytes(gzip.compress(inner.read_bytes()))
    elif kind == ".zst":
        with pyarrow.output_stream(path, compression="zstd") as out:
            out.write(inner.read_bytes())
    return path


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_every_format_gives_the_same_rows(kind: str, packed: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"rows{kind}{packed}")
    assert list(read_rows(path)) == list(enumerate(ROWS))


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_a_row_longer_than_the_cap_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("open_file", "files", "json", "arrow", "parquet"):
        monkeypatch.setattr(f"dpo.data.rows.{module}.LONGEST_ROW", 2000)
    monkeypatch.setattr("dpo.data.rows.json.CHUNK", 300)
    rows = [*ROWS[:3], {**ROWS[3], "chosen": "x" * 3000}, *ROWS[4:6]]
    path = written(tmp_path / f"rows{kind}", rows)
    if kind == ".json":  # where the next element begins cannot be known without reading all of this one
        with pytest.raises(DataError, match=r"rows\.json:3: .*longer than a row may be"):
            list(read_rows(path))
        return
    found = dict(read_rows(path))
    assert [i for i, row in found.items() if isinstance(row, Refusal)] == [3]
    assert found[5] == ROWS[5]
    if kind != ".csv" and kind != ".tsv":
        assert found[3].reason is Reason.too_long
    with pytest.raises(DataError, match=r"rows.*:3: "):
        load_splits(dataset("local", path=str(tmp_path / f"rows{kind}")))


def test_a_line_without_end_is_read_in_pieces(tmp_path: Path) -> None:
    read: list[int] = []
    line = b"x" * (open_file.LONGEST_ROW + 5)

    def readline(size: int) -> bytes:
        nonlocal line
        read.append(size)
        part, line = line[:size], line[size:]
        return part

    assert list(open_file.Lines(readline, b"\n")) == [open_file.TOO_LONG]
    assert max(read) <= open_file.LONGEST_ROW + 1


def test_an_array_is_read_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo.data.rows.json.CHUNK", 64)
    path = written(tmp_path / "rows.json")
    rows = read_rows(path)
    assert next(rows) == (0, ROWS[0])
    with path.open("rb+") as file:  # what follows has not been read yet
        file.truncate(path.stat().st_size - 2)
    for content in ("[1, 2", "[1 2]", '[{"a": 1}] x', "[1,]", '["\\x"]', "["):
        path.write_text(content)
        with pytest.raises(DataError, match=r"rows\.json:\d: unparsable"):
            list(read_rows(path))
    path.write_text(' [12345, {"a": "\\u00e9"}, []] \n')
    assert list(read_rows(path)) == [(0, 12345), (1, {"a": "é"}), (2, [])]
    path.write_text("[]")
    assert list(read_rows(path)) == []


def test_a_header_that_stands_once_more_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen\nq,a\nprompt,chosen\np,b\n")
    rows = [row for _, row in read_rows(tmp_path / "rows.csv")]
    assert rows[1] == Refusal(Reason.unparsable, "", "the header once more")
    assert [rows[0], rows[2]] == [{"prompt": "q", "chosen": "a"}, {"prompt": "p", "chosen": "b"}]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.tsv"):
        mark = "," if name.endswith("csv") else "\t"
        (tmp_path / name).write_text(mark.join(["prompt", "chosen", "rejected", "prompt"]) + "\n")
    table = pyarrow.table([["q"], ["a"], ["b"], ["c"]], names=["prompt", "chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pyarrow.ipc.new_file(tmp_path / "rows.arrow", table.schema) as out:
        out.write_table(table)
    for name in ("rows.csv", "rows.tsv", "rows.parquet", "rows.arrow"):
        with pytest.raises(DataError, match=rf"{name}: two columns are named '(prompt|chosen)'"):
            list(read_rows(tmp_path / name))


def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    row = '{"prompt": "q", "prompt": [{"role": "user", "content": "a"}], "chosen": "x", "rejected": "y"}'
    inner = '{"prompt": [{"role": "user", "content": "a", "content": "b"}], "chosen": "x", "rejected": "y"}'
    for name, content in (("rows.jsonl", f"{row}\n{inner}\n"), ("rows.json", f"[{row}, {inner}]")):
        (tmp_path / name).write_text(content)
        found = [row for _, row in read_rows(tmp_path / name)]
        assert [str(refusal).split("key")[1] for refusal in found] == [
            f" '{key}' stands there twice" for key in ("prompt", "content")
        ]


def test_pipes_devices_and_folders_are_no_files_of_rows(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        for read in (
            lambda path=path: find_files(path, dataset("local")),
            lambda path=path: from_file(path),
        ):
            with pytest.raises(DataError, match="a pipe or a device, not a file"):
                read()
    with pytest.raises(DataError, match="a pipe or a device, not a file"):
        read_responses(pipe, None, None, (), None)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="a folder, not a file"):
        from_file(tmp_path / "folder.jsonl")


def test_prompts_are_read_line_by_line_with_the_same_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_file, "LONGEST_ROW", 100)
    path = tmp_path / "prompts.txt.gz"
    path.write_bytes(gzip.compress(b"one\r\ntwo\rthree\n" + b"x" * 300 + b"\n"))
    with pytest.raises(DataError, match=r"prompts\.txt\.gz:4: longer than a row may be"):
        from_file(path)
    path.write_bytes(gzip.compress(b"one\r\ntwo\rthree\n"))
    assert [prompt.text for prompt in from_file(path)] == ["one", "two", "three"]
    path.write_bytes(gzip.compress(b'{"prompt": "a", "prompt": "b"}\n'))
    with pytest.raises(DataError, match="stands there twice"):
        from_file(path)


def test_a_date_python_has_no_value_for_in_a_column_nobody_reads(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    far = pyarrow.array([400_000_000_000] * len(ROWS), pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(table.append_column("time", far), tmp_path / "far.parquet")
    assert len(load_splits(dataset("local", path=str(tmp_path / "far.parquet"))).train) > 20
    pyarrow.parquet.write_table(table.set_column(1, "chosen", far), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet:0/chosen: not text"):
        load_splits(dataset("local", path=str(tmp_path / "bad.parquet")))


def test_a_folder_of_save_to_disk_is_read_like_its_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "data-00007-of-00009.arrow").write_bytes(b"left by an earlier save")
    parts = DatasetDict({"train": Dataset.from_list(ROWS[:30]), "test": Dataset.from_list(ROWS[30:])})
    parts.save_to_disk(str(tmp_path / "split"))
    one = load_splits(dataset("local", path=str(tmp_path / "one"), dev_fraction=0, test_fraction=0))
    assert [pair.chosen for pair in one.train] == [row["chosen"] for row in ROWS]
    split = load_splits(dataset("local", path=str(tmp_path / "split"), dev_fraction=0))
    assert [len(split.train), len(split.test)] == [30, 10]
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json: damaged"):
        find_files(tmp_path / "one", dataset("local"))


def test_an_unknown_format_is_refused_before_the_cache_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_bytes(written(tmp_path / "rows.jsonl").read_bytes())
    with pytest.raises(DataError, match="not a data file"):
        find_files(path, dataset("local"))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", '{"a":1}\n\n{"a":2}\n', {0: 1, 2: 3}),
        ("a.json", '{"a":1}\n{"a":2}\n', {1: 2}),
        ("a.json", '[{"a":1},\n{"a":2}]', {0: None, 1: None}),
        ("a.csv", 'a,b\n"one\nmore",2\n\n3,4\n', {0: 2, 1: 5}),
        ("a.tsv", "a\tb\n1\t2\n3\t4\n", {0: 2, 1: 3}),
    ],
)
def test_a_row_has_the_line_that_an_editor_shows(tmp_path: Path, name: str, text: str, lines: dict[int, Any]) -> None:
    """Rows are counted from 0, lines from 1, and a cell may hold several lines."""
    path = tmp_path / name
    path.write_text(text)
    assert [number for number, _ in read_rows(path)] == sorted({0, 1, *lines} - ({1} if 2 in lines else set()))
    assert {number: editor_line(path, number) for number in lines} == lines
