"""Cells from hostile model output: nothing reaches a terminal or a spreadsheet as anything but text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpo.pages.tables import clock, csv_cell, number, points, share, to_csv, to_table
from dpo.streams import clean


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[31mred\x1b[0m",
        "\x1b]0;owned title\x07",
        "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
        "\x1b[2J\x1b[H\x1bc",
        "\x9b31mred",
        "\x1bP1;2|payload\x1b\\",
        "a\x07b\x08c\x7f",
        "abc\u202egpj.exe",
        "\x1b",
    ],
)
def test_terminal_escapes_are_removed(hostile: str) -> None:
    safe = clean(hostile)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in safe), repr(safe)
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=False).print(to_table(["x"], [[hostile]]))
    assert "\x1b" not in out.getvalue()
    assert "\x9b" not in out.getvalue()


def test_ordinary_text_and_newlines_stay() -> None:
    text = "Zwei Zeilen:\n“日本語” – ok\t!"
    assert clean(text.replace("\n", "\r\n")) == text


def test_rich_markup_in_cells_is_text() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(to_table(["[red]x"], [["[bold]loud[/bold] [link=http://e.example]y[/link]"]]))
    assert "[bold]loud[/bold]" in out.getvalue()
    assert "[link=http://e.example]" in out.getvalue()


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", '"=1', "\t=1", "\r=2", "\n=3"]
)
def test_formulas_become_text(cell: str) -> None:
    assert csv_cell(cell).startswith("'")


def test_numbers_stay_numbers() -> None:
    assert csv_cell(-1.5) == "-1.5"
    assert csv_cell(3) == "3"
    assert csv_cell(None) == ""
    assert csv_cell(True) == "True"


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_csv_reads_back_as_cleaned_cells(cells: list[str]) -> None:
    columns = [f"c{i}" for i in range(len(cells))]
    text = to_csv(columns, [dict(zip(columns, cells, strict=True))])
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == columns
    assert rows[1:] == ([[csv_cell(c) for c in cells]] if len(cells) > 1 or csv_cell(cells[0]) else rows[1:])
    for cell in rows[1] if len(rows) > 1 else []:
        assert not cell.lstrip(" \"'").startswith(("=", "@")) or cell.startswith("'")


def test_estimates_in_words() -> None:
    estimate = {"value": 0.584, "low": 0.5, "high": 0.66, "n": 100}
    assert share(estimate) == "58% [50, 66]"
    assert points(estimate) == "+58 points [+50, +66]"
    assert number(estimate, 1, True) == "+0.6 [+0.5, +0.7]"
    assert share(None) == points(None) == number(None) == "-"
    assert clock(3723) == "1:02:03"
    assert clock(65.4) == "1:05"
