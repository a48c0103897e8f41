"""Tables for terminals and CSV files. Model output is hostile: control characters and formulas are tamed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo.pages.fitted import Fitted, flat_spaces
from dpo.records.read import DASH
from dpo.streams import clean

_FORMULA = re.compile(r"^[\s\"']*[=+\-@\t\r]")

# An Estimate as in summary.json, a number that came without an interval, or nothing.
Figure = Mapping[str, Any] | float | None


def csv_cell(value: Any) -> str:
    """A cell no spreadsheet takes for a formula: text that begins like one gets an apostrophe; numbers stay numbers."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = clean(str(value))
        return f"'{text}" if _FORMULA.match(text) else text
    return repr(value)


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header line; every cell goes through `csv_cell`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    writer.writerows([[csv_cell(row.get(name)) for name in columns] for row in rows])
    return out.getvalue()


def to_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, **settings: Any
) -> Fitted:
    """A table for a terminal of any width, with `settings` of Fitted; no cell is read as markup."""

    def cell(value: Any) -> str:
        return flat_spaces(clean("" if value is None else str(value)))

    heading = None if title is None else clean(title)
    return Fitted(
        [cell(name) for name in columns], [[cell(value) for value in row] for row in rows], heading, **settings
    )


def share(estimate: Figure) -> str:
    """`58% [50, 66]` from an estimate of a share."""
    return _words(estimate, lambda x: f"{100 * x:.0f}", "%")


def percent(value: Figure) -> str:
    """`95%` from 0.95."""
    return _words(value, lambda x: f"{100 * x:.0f}", "%")


def points(estimate: Figure) -> str:
    """`+12 points [+3, +21]` from an estimate of a difference between shares."""
    return _words(estimate, lambda x: _signed(100 * x, 0), " points")


def number(estimate: Figure, digits: int = 2, signed: bool = False) -> str:
    """`1.52 [1.31, 1.73]` from an estimate."""
    return _words(estimate, lambda x: _signed(x, digits) if signed else f"{x:.{digits}f}")


def _words(estimate: Figure, word: Callable[[float], str], unit: str = "") -> str:
    """An estimate with its interval, a plain number without one, a dash for what was not measured."""
    parts = estimate if isinstance(estimate, Mapping) else {"value": estimate}
    value, low, high = (parts.get(key) for key in ("value", "low", "high"))
    if value is None:
        return DASH
    # Of one there is no spread, and no interval.
    alone = parts.get("n") == 1 and low == high
    interval = "" if low is None or high is None or alone else f" [{word(low)}, {word(high)}]"
    return f"{word(value)}{unit}{interval}"


def _signed(value: float, digits: int) -> str:
    """With its sign, but no sign on what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def counted(count: int, one: str) -> str:
    """`1 pair`, `7 pairs`."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def clock(seconds: float) -> str:
    """`1:02:03` or `4:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
