"""A table that fits its terminal: no cell is cropped and no word broken, whatever the width.

Where it is too wide it is set closer, then its cells are wrapped between words, then columns it can do without are left
out and named; where nothing helps each row becomes a few lines of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

# An interval is one word, and so is all between spaces; wide characters (CJK) may stand at the end of any line.
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\uffe6\U00020000-\U0003fffd"
_WORD = re.compile(rf" *(?:\[[^\[\]\n]{{1,30}}\]|[^ \n{_WIDE}])+| *[^ \n]")
Padding = tuple[int, int, int, int]
# Cells of space (above, right, below, left) around a cell.
ROOMY, CLOSE = (0, 1, 0, 1), (0, 1, 0, 0)


@dataclass(frozen=True)
class Fitted:
    """Columns by name and rows of cells, the first one the row's name; the others are set to the right.

    `spare`: columns it can do without, the least important first. `left`: columns of words, set to the left. `styles`:
    one a row. `ruled`: a line between rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    spare: Sequence[str] = ()
    left: Sequence[str] = ()
    styles: Sequence[str] = ()
    ruled: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The widest form that fits `options.max_width`."""
        width = options.max_width
        if self.title is not None:
            yield from (Text(line, style="bold") for line in wrapped(self.title, width))
        kept = list(range(len(self.columns)))
        missing: list[str] = []
        for name in (None, *self.spare):
            if name is not None:
                kept.remove(list(self.columns).index(name))
                missing.append(name)
            for padding, wraps in ((ROOMY, False), (CLOSE, False), (CLOSE, True)):
                if widths := self._widths(kept, width, padding, wraps):
                    yield self._table(kept, widths, padding)
                    if missing:
                        left_out = f"not shown at this width: {', '.join(missing)}"
                        yield from (Text(line, style="dim") for line in wrapped(left_out, width))
                    return
        yield from self._stacked(width)

    def _widths(self, kept: list[int], width: int, padding: Padding, wraps: bool) -> list[int] | None:
        """Of each column, or None where they do not fit. The widest give way, as far as their longest words."""
        cells = [[self.columns[i], *(row[i] for row in self.rows)] for i in kept]
        widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
        needed = [max((cell_len(word) for cell in column for word in _words(cell)), default=0) for column in cells]
        # The box takes a cell between columns and at each end.
        room = width - (len(kept) + 1) - len(kept) * sum(padding)
        while sum(widths) > room:
            able = [i for i in range(len(kept)) if widths[i] > needed[i]]
            if not (wraps and able):
                return None
            widths[max(able, key=lambda i: widths[i])] -= 1
        return widths

    def _table(self, kept: list[int], widths: list[int], padding: Padding) -> Table:
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=padding, show_lines=self.ruled)
        for number, (i, width) in enumerate(zip(kept, widths, strict=True)):
            name = self.columns[i]
            side: Literal["left", "right"] = "left" if number == 0 or name in self.left else "right"
            table.add_column(Text("\n".join(wrapped(name, width))), justify=side, width=width, no_wrap=True)
        for number, row in enumerate(self.rows):
            cells = (Text("\n".join(wrapped(row[i], width))) for i, width in zip(kept, widths, strict=True))
            table.add_row(*cells, style=self.styles[number] if self.styles else None)
        return table

    def _stacked(self, width: int) -> Iterator[Text]:
        for number, row in enumerate(self.rows):
            style = self.styles[number] if self.styles else ""
            yield from (Text(line, style=f"bold {style}") for line in wrapped(row[0], width))
            for name, cell in zip(self.columns[1:], row[1:], strict=True):
                if cell:
                    yield from (Text(line, style=style) for line in wrapped(f"  {name}: {cell}", width, "    "))
        yield Text("")


def wrapped(text: str, width: int, hanging: str = "") -> list[str]:
    """Lines of at most `width` cells, broken between words only; a word of more than that is broken."""
    lines = []
    for line in flat_spaces(text).split("\n"):
        made = ""
        for word in _WORD.findall(line):
            if not made or cell_len(made + word) <= width:
                made += word
            else:
                lines.append(made)
                made = hanging + word.lstrip(" ")
            while cell_len(made) > width:
                lines.append(set_cell_size(made, width))
                made = hanging + made[len(lines[-1].rstrip(" ")) :]
        lines.append(made)
    return lines


def flat_spaces(text: str) -> str:
    """Tabs and other spaces as one plain space each; lines stay."""
    return re.sub(r"[^\S\n]", " ", text)


def _words(cell: str) -> Iterator[str]:
    """What is not broken, and before the first of a line its indentation."""
    for line in cell.split("\n"):
        for number, word in enumerate(_WORD.findall(line)):
            yield word if number == 0 else word.lstrip(" ")
