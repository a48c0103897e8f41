"""What an evaluation says on the terminal: figures before and after with intervals, the rule, samples side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.pages.headline import COLUMNS, caption, figure_rows, notes
from dpo.pages.tables import to_table
from dpo.pages.words import verdict_word
from dpo.records.read import json_file, pick, read_samples
from dpo.records.terminal import terminal
from dpo.streams import clean

Row = dict[str, Any]


def show(folder: Path, samples: int, console: Console | None = None) -> None:
    """Print the evaluation in `folder` (`<run>/evaluation/<name>`), with `samples` prompts drawn by its seed."""
    console = console or terminal()
    run, summary = folder.parents[1], json_file(folder / "summary.json")
    console.print(to_table(COLUMNS, figure_rows(summary), caption(summary)))
    for line in notes(summary):
        console.print(Text(clean(line), style="dim"))
    if samples:
        _show_samples(console, pick(read_samples(run, folder.name), samples, summary["settings"]["seed"]))
    console.print(Text(clean(f"run directory {run}; rows and samples in {folder}")), soft_wrap=True)


def _show_samples(console: Console, samples: list[Row]) -> None:
    rows = []
    for sample in samples:
        for name in ("baseline", "policy"):
            answer = sample[name]
            verdicts = "; ".join(f"{judge}: {verdict_word(v)}" for judge, v in answer["verdicts"].items())
            end = "" if answer["finished"] else " [cut]"
            answer["shown"] = f"{answer['answer'].strip()}{end}" + (f"\n({verdicts})" if verdicts else "")
        question = sample["messages"][-1]["content"]
        rows.append([question, sample["baseline"]["shown"], sample["policy"]["shown"]])
    columns = ["prompt", "before", "after"]
    console.print(to_table(columns, rows, "samples, drawn at random", left=columns, ruled=True))
