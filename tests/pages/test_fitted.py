"""Tables at three widths and narrower: nothing cropped, no word broken, and what is left out is named."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from dpo.pages.tables import to_table

NAME = "quickstart/20261130-220733-80818e17fe"
STATUS = ["run", "state", "step", "left", "loss", "best dev accuracy", "evaluated"]
RUNS: dict[str, tuple[list[str], list[list[Any]], dict[str, Any]]] = {
    "long names": (
        STATUS,
        [[NAME, "complete", "60/60", "1:02:03", "0.4400", "84% at 60", "accuracy 84%, rules 33% to 60%"]] * 3,
        {"spare": ("loss", "left", "best dev accuracy"), "left": ("state", "evaluated")},
    ),
    "many columns": (
        ["", "baseline", *(f"{NAME}{i}" for i in range(9))],
        [["implicit-reward accuracy", "50% (ties)", *(f"8{i}% [7{i}, 89]" for i in range(9))]] * 4,
        {},
    ),
    "a sweep": (
        ["setting", "answers that meet the rule", "gain", "behind the best", "verdict"],
        [["dpo.beta=0.05 lora.rank=64", "56%", "+23 points [+15, +31]", "-4 points [-11, +2]", "not told apart"]] * 9,
        {"left": ("verdict",)},
    ),
    "wide characters": (
        ["prompt", "before", "after"],
        [
            ["日本語の長い質問です。" * 6, "中文回答" * 40, "한국어 답변 " * 20],
            ["a\tb\u3000c", "é\u0301x" * 9, "🙂 ok"],
        ],
        {"ruled": True, "left": ("before", "after")},
    ),
    "nothing in it": (["run", "state"], [], {}),
}


def _shown(name: str, width: int) -> str:
    columns, rows, settings = RUNS[name]
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(to_table(columns, rows, "a title of some words", **settings))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [120, 100, 80, 40])
def test_it_fits_and_breaks_no_word(name: str, width: int) -> None:
    shown = _shown(name, width)
    columns, rows, _ = RUNS[name]
    assert max(map(cell_len, shown.split("\n"))) <= width
    assert "\u2026" not in shown
    gone = shown.partition("not shown at this width: ")[2].split("\n")[0].split(", ")
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            for word in str(cell).split() if column not in gone else ():
                # Words of wide characters may be broken between any two of them.
                parts = [word] if word.isascii() else list(word)
                assert all(part in shown for part in parts), (column, word)
    # Intervals are one word.
    assert all(line.count("[") == line.count("]") for line in shown.split("\n"))


def test_the_least_important_columns_go_first_and_are_named() -> None:
    assert "not shown" not in _shown("long names", 120)
    assert "not shown at this width: loss, left\n" in _shown("long names", 80)
    stacked = _shown("long names", 40)
    assert f"{NAME}\n  state: complete\n  step: 60/60\n" in stacked
    assert "  loss: 0.4400\n" in stacked, "a line each has room for all"


def test_the_verdict_of_a_sweep_stays() -> None:
    for width in (120, 100, 80, 60):
        assert "verdict" in _shown("a sweep", width)
