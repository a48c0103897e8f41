"""A file of rows that is killed while it grows, or damaged before it is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo.errors import CheckpointError
from dpo.records import row_file
from dpo.records.row_file import Row, RowFile

OLD: list[Row] = [{"n": 1}, {"n": 2}]
NEW: list[Row] = [{"n": 3}, {"n": 4}]


def grown(path: Path) -> RowFile:
    """A file with the old rows, as another process finds it."""
    RowFile(path, "way out").append(OLD)
    return RowFile(path, "way out")


@pytest.mark.parametrize("written", [0, 4, 9, 12, 18])
def test_a_kill_while_rows_are_added_leaves_the_rows_before_it(tmp_path: Path, written: int) -> None:
    path = tmp_path / "rows.jsonl"
    grown(path).append(NEW)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 18 + written])
    file = RowFile(path, "way out")
    assert file.read() == (OLD + NEW if written == 18 else OLD)
    file.append([{"n": 5}])
    assert RowFile(path, "way out").read()[-1] == {"n": 5}


def test_a_kill_while_rows_are_replaced_leaves_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(row_file, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            grown(path).rewrite(NEW)
    assert RowFile(path, "way out").read() == OLD
    RowFile(path, "way out").rewrite(NEW)
    assert RowFile(path, "way out").read() == NEW


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"1", b"7"),
        lambda data: b"",
        lambda data: data[: data.find(b"\n") + 1],
        lambda data: bytes(len(data)),
        lambda data: b"[1]\n" + data,
    ],
)
def test_damage_of_what_was_there_before_the_latest_change_is_found(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "rows.jsonl"
    grown(path).append(NEW)
    path.write_bytes(damage(path.read_bytes()) or b"\n")
    with pytest.raises(CheckpointError, match=r"rows\.jsonl: not as it was written.*\nway out"):
        RowFile(path, "way out").read()


def test_without_marks_the_rows_are_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = grown(path)
    file.marks.unlink()
    assert file.read() == OLD
    for text in ("{]\n", "[1]\n"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="way out"):
            file.read()
    path.unlink()
    assert file.read() == []
