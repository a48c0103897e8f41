"""One terminal screen about a prepared dataset: what was kept, what was not and why, lengths, cuts, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.data.prepare import Prepared
from dpo.data.remarks import cuts, few_held_out
from dpo.data.report import SPLITS
from dpo.pages.mixed import PART_COLUMNS, part_rows
from dpo.pages.tables import to_table
from dpo.records.terminal import terminal
from dpo.streams import clean

IDS = 4


def show(data: Prepared, folder: Path, console: Console | None = None) -> None:
    """Print the report of `data`; the whole of it lies in `folder`."""
    console = console or terminal()
    report = data.report
    console.print(_headline(data), markup=False, soft_wrap=True)
    table = to_table(
        ["", *SPLITS, "row ids"],
        [
            ["rows read", *(report["rows"][split] for split in SPLITS), ""],
            ["pairs kept", *(report["kept"][split] for split in SPLITS), ""],
            *([f"refused: {name}", *_by_split(found["ids"]), _few(found["ids"])]
              for name, found in report["refused"].items()),
            *([f"noted: {name}", *_by_split(found["ids"]), _few(found["ids"])]
              for name, found in report["noted"].items() if found["count"]),
        ],
    )  # fmt: skip
    console.print(table)
    if report["parts"] is not None:
        console.print(to_table(PART_COLUMNS, part_rows(report)))
    console.print(_lengths(report))
    for line in [*_bias(report), *_cut(report), *map(clean, [*report["warnings"], *few_held_out(report)])]:
        console.print(line, markup=False)
    for example in report["examples"]:
        console.print(_one_line(f"{clean(example['id'])}  ", example["prompt"], "dim", console.width, 0.2))
        for side, style in (("chosen", "green"), ("rejected", "red")):
            if example[side]:  # a single answer lacks one
                console.print(_one_line(f"  {side:>8}  ", example[side], style, console.width, 0.7))
    console.print(f"pairs, data.json and data.html: {folder}", markup=False, soft_wrap=True)


def _headline(data: Prepared) -> str:
    report = data.report
    origin = report["origin"] + (f" ({report['revision'][:10]})" if report["revision"] else "")
    state = "found in the cache" if data.cached else "prepared"
    limit = ", stopped at dataset.limit" if report["stopped_at_limit"] else ""
    return clean(f"{report['source']} from {origin}: {state}, fingerprint {data.fingerprint[:10]}{limit}")


def _by_split(ids: list[str]) -> list[int]:
    return [sum(f":{split}:" in row_id for row_id in ids) for split in SPLITS]


def _few(ids: list[str]) -> str:
    shown = ", ".join(row_id.rpartition(":")[2] for row_id in ids[:IDS])
    return shown + (", ..." if len(ids) > IDS else "")


def _lengths(report: dict[str, Any]) -> Any:
    names = {"0": "min", "0.05": "5%", "0.25": "25%", "0.5": "median", "0.75": "75%", "0.95": "95%", "1": "max"}
    lengths = report["lengths"]["train"]
    rows = [[part, *(values[q] for q in names)] for part, values in lengths.items()]
    return to_table(["tokens in train", *names.values()], rows)


def _bias(report: dict[str, Any]) -> list[str]:
    bias = report["length_bias"]["train"]
    if bias is None:
        return []
    return [
        f"chosen minus rejected: {bias['mean_tokens']:+.1f} tokens (95%: {bias['mean_low']:+.1f} to "
        f"{bias['mean_high']:+.1f}); chosen is longer in {bias['chosen_longer']:.0%} "
        f"({bias['chosen_longer_low']:.0%} to {bias['chosen_longer_high']:.0%})"
    ]


def _cut(report: dict[str, Any]) -> list[str]:
    return cuts(report) or [f"cut to fit {report['max_length']} tokens: nothing"]


def _one_line(name: str, text: str, style: str, width: int, front: float) -> Text:
    """A text cut in the middle to fit a line; `front` is the share of it that shows how the text begins."""
    text, room = clean(text).replace("\n", "\u23ce"), max(20, width - len(name))
    if len(text) > room:
        head = int(room * front)
        text = f"{text[:head]} \u2026 {text[len(text) - (room - head - 3) :]}"
    return Text(name + text, style=style, no_wrap=True, overflow="ellipsis")
