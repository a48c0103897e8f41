"""Consoles of rich's whose own colours and bars reach the terminal while the text between them is cleaned."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dpo.streams import AsItIs, Cleaned, clean

NO_TERMINAL = 100
"""Columns in a pipe or file."""


class CleanConsole(Console):
    """A console that cleans what it renders; its own control codes pass."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **style: Any) -> None:
        """As rich prints; a line of text is not broken where no terminal is: a program or grep reads it whole."""
        if soft_wrap is None and not self.is_terminal and all(isinstance(item, str | Text) for item in objects):
            soft_wrap = True
        super().print(*objects, soft_wrap=soft_wrap, **style)

    @property  # type: ignore[misc]
    def file(self) -> IO[str]:
        """What is written to: the stream itself would take the codes out."""
        found: Any = super().file
        return AsItIs(found) if isinstance(found, Cleaned) else found  # type: ignore[return-value]

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """rich's segments, their text cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean(segment.text))


def console(**settings: Any) -> Console:
    """A console for lines and bars, which are never wrapped unless `settings` say so."""
    return CleanConsole(**{"soft_wrap": True, "highlight": False, **settings})


def terminal() -> Console:
    """The console verbs print tables to: as wide as the terminal or $COLUMNS says, 100 columns where neither does."""
    made = console(soft_wrap=False)
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        made = console(soft_wrap=False, width=NO_TERMINAL)
    return made
