"""Small files of columns that unpack to gigabytes: what is read stays bounded, and what is too large is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from dpo.data.refusal import Refusal
from dpo.data.rows import arrow, parquet
from dpo.data.rows.files import read_rows
from dpo.errors import DataError

LONG = "x" * 3000
COUNT = 1500
ROWS = [{"prompt": f"question {i}", "chosen": "good", "rejected": f"bad {i}"} for i in range(COUNT)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test reaches."""
    for module in ("open_file", "files", "json", "arrow"):
        monkeypatch.setattr(f"dpo.data.rows.{module}.LONGEST_ROW", 2000)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 8000)
    monkeypatch.setattr(parquet, "HARMLESS", 100_000)
    monkeypatch.setattr(parquet, "LONGEST_GROUP", 1 << 20)


def repeated(texts: list[str], places: list[int]) -> Any:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(places, pyarrow.int32()), pyarrow.array(texts))


def column(kind: str) -> Any:
    """A column whose rows unpack to far more than it stores."""
    texts = repeated(["short", LONG], [i % 2 for i in range(COUNT)])
    many = repeated(["y" * 900], [0] * COUNT)
    offsets = pyarrow.array([0, *range(1, COUNT), COUNT], pyarrow.int32())
    all_in_one = pyarrow.array([0, COUNT, *[COUNT] * (COUNT - 1)], pyarrow.int32())
    return {
        "text": texts,
        "list": pyarrow.ListArray.from_arrays(offsets, texts),
        "one row of many": pyarrow.ListArray.from_arrays(all_in_one, many),
        "struct": pyarrow.StructArray.from_arrays([texts, many], ["content", "role"]),
        "nulls": pyarrow.ListArray.from_arrays(all_in_one, pyarrow.nulls(COUNT, pyarrow.string())),
    }[kind]


def write(path: Path, more: Any) -> Path:
    table = pyarrow.Table.from_pylist(ROWS).append_column("more", more)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["text", "list", "one row of many", "struct", "nulls"])
def test_rows_that_are_too_long_once_unpacked_are_refused_before_they_are(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    pylist = arrow._pylist
    monkeypatch.setattr(
        arrow, "_pylist", lambda batch: made.append(sum(map(arrow._unpacked, batch.columns))) or pylist(batch)
    )
    found = dict(read_rows(write(tmp_path / f"rows{suffix}", column(kind))))
    long = {"text": range(1, COUNT, 2), "list": range(1, COUNT, 2), "struct": range(1, COUNT, 2)}.get(kind, [0])
    assert [i for i, row in found.items() if isinstance(row, Refusal)] == list(long)
    assert max(made, default=0) <= 2000
    last = {
        "more": {"text": "short", "list": ["short"], "struct": {"content": "short", "role": "y" * 900}}.get(kind, [])
    }
    assert found[COUNT - 2] == ROWS[COUNT - 2] | last


def test_a_long_text_that_many_rows_repeat_is_in_memory_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", column("text"))
    table = pyarrow.parquet.ParquetFile(path)
    with path.open("rb") as file:
        for batch in parquet._batches(file, table, path):
            assert pyarrow.types.is_dictionary(batch.schema.field("more").type)
            assert batch.column("more").nbytes < 2 * len(LONG) + 8 * 512


def test_texts_that_share_their_beginnings_come_a_few_at_a_time(tmp_path: Path) -> None:
    texts = pyarrow.array([f"{'z' * 1000}{i}" for i in range(COUNT)])
    one = pyarrow.ListArray.from_arrays(pyarrow.array(range(COUNT + 1), pyarrow.int32()), texts)
    for name, more, leaf in (("a", texts, "more"), ("b", one, "more.list.element")):
        table = pyarrow.table({"more": more})
        pyarrow.parquet.write_table(
            table, tmp_path / f"{name}.parquet", use_dictionary=False, column_encoding={leaf: parquet.SHARED_PREFIX}
        )
    read = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert parquet._way(read, 0, "")[0] <= 8
    assert [row["more"] for _, row in read_rows(tmp_path / "a.parquet")] == texts.to_pylist()
    with pytest.raises(DataError, match=r"b\.parquet: row group 0: column more\.list\.element: lists of texts"):
        list(read_rows(tmp_path / "b.parquet"))


def test_a_row_group_that_is_too_large_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"more": pyarrow.array([[None] * 200_000], pyarrow.list_(pyarrow.string()))})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: row group 0: .*when unpacked.*\n.*row_group_size"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("kind", ["string_view", "run_end_encoded", "list_view"])
def test_a_type_whose_rows_share_bytes_is_named(kind: str, tmp_path: Path) -> None:
    texts = pyarrow.array(["a", "a"])
    more = {
        "string_view": lambda: texts.cast(pyarrow.string_view()),
        "run_end_encoded": lambda: pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([2], pyarrow.int32()), ["a"]),
        "list_view": lambda: pyarrow.ListViewArray.from_arrays([0, 0], [2, 2], texts),
    }[kind]()
    table = pyarrow.table({"more": more})
    with pyarrow.ipc.new_file(tmp_path / "rows.arrow", table.schema) as out:
        out.write_table(table)
    with pytest.raises(DataError, match=r"rows\.arrow: column 'more' is of type .*not read here"):
        list(read_rows(tmp_path / "rows.arrow"))


BOMB = """
import resource, sys
from pathlib import Path
from dpo.data.rows.files import read_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [row for _, row in read_rows(Path(sys.argv[1]))]
print(len(rows), len({str(row) for row in rows}), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_file_of_less_than_a_megabyte_does_not_become_gigabytes(tmp_path: Path) -> None:
    """Read as it stood before, 600 rows of it took more than 12 GB."""
    table = pyarrow.table({"prompt": repeated(["x" * (20 << 20)], [0] * 600)})
    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True)
    rows, kinds, megabytes = map(int, done.stdout.split())
    assert (rows, kinds) == (600, 1)
    assert megabytes < 500
