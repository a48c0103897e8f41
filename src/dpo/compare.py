"""`python -m dpo.compare runs=[DIR,DIR]`: which run is better, by how much, how surely, and at what cost?"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

from rich.text import Text

from dpo.config.entry import main as app
from dpo.config.evaluation import Compare, check_ranges, register
from dpo.errors import ConfigError


def compare(config: Compare) -> Path:
    """Compare evaluated runs, print the tables, write comparison.json, .csv and report.html; returns their folder."""
    check_ranges(config)
    if not config.runs:
        raise ConfigError("runs: name at least one run directory")
    from dpo.config.roots import outputs_root
    from dpo.evaluation.comparing.comparison import compare as compare_entries
    from dpo.evaluation.comparing.comparison import read_entries
    from dpo.pages.compare import write_comparison_page
    from dpo.pages.comparison_tables import comparison_csv
    from dpo.records.files import write_json, write_text
    from dpo.records.naming import run_folder

    folders = [run_folder(run, "runs") for run in config.runs]
    entries = read_entries(folders, config.name)
    found = compare_entries(entries, config.resamples, config.confidence, config.seed)
    names = "\0".join([config.name, *(str(folder.resolve()) for folder in folders)])
    digest = hashlib.sha256(names.encode()).hexdigest()[:10]
    out = Path(config.out).expanduser() if config.out else outputs_root() / "comparisons" / digest
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", found)
    write_text(out / "comparison.csv", comparison_csv(found))
    write_comparison_page(out / "report.html", found, _side_by_side(entries), config.show)
    _print(found, folders, out)
    return out


def _side_by_side(entries: list[Any]) -> list[dict[str, Any]]:
    """One row a prompt and sample: the baseline's answer and every run's."""
    rows = []
    for samples in zip(*(entry.samples for entry in entries), strict=True):
        answers = [("baseline", samples[0]["baseline"])]
        answers += [(entry.label, sample["policy"]) for entry, sample in zip(entries, samples, strict=True)]
        rows.append({"messages": samples[0]["messages"], "answers": answers})
    return rows


def _print(found: dict[str, Any], folders: list[Path], out: Path) -> None:
    from dpo.pages.comparison_tables import (
        ALIKE,
        COST_NOTE,
        cost_table,
        difference_table,
        figure_tables,
        pairwise_table,
        quality_table,
    )
    from dpo.pages.ending import say
    from dpo.pages.shares import NOTE, curve, sentences
    from dpo.pages.tables import to_table
    from dpo.records.terminal import terminal
    from dpo.streams import clean

    console = terminal()
    labels = [row["label"] for row in found["rows"][1:]]
    if found["differs"]:
        console.print(to_table(*difference_table(found), title="what differs between the runs"))
    elif len(labels) > 1:
        console.print(ALIKE, markup=False)
    if found["caution"]:
        console.print(Text(found["caution"], style="yellow"))
    console.print(to_table(*quality_table(found), title="quality"))
    for judge, table in figure_tables(found):
        console.print(to_table(*table, title=f"figures by {judge}"))
    if found["pairwise"]:
        console.print(to_table(*pairwise_table(found), title="run against run"))
    console.print(to_table(*cost_table(found), title="cost, all attempts included"))
    console.print(Text(COST_NOTE, style="dim"))
    methods = found["methods"]
    if methods:
        console.print(to_table(*curve(methods), title=f"quality by {methods['judge']} against distance and cost"))
        console.print(Text(NOTE, style="dim"))
        for line in sentences(methods):
            console.print(Text(clean(line), style="bold"))
    choice = found["choice"]
    taken = [folder for row, folder in zip(found["rows"][1:], folders, strict=True) if row["label"] == choice["label"]]
    following = _next(taken, folders, found["judge"] is not None)
    say(console, choice["reason"], [], [f"comparison in {out}", f"report: {out / 'report.html'}", *following])


def _next(taken: list[Path], folders: list[Path], judged: bool) -> list[str]:
    """What to do with the run that was chosen; without one, what could decide: a judge, or more answers."""
    from dpo.pages.ending import JUDGE, commands

    if taken:
        return commands([f"{verb} {shlex.quote(str(folder))}" for folder in taken for verb in ("chat", "export")])
    named = [shlex.quote(str(folder)) for folder in folders]
    if not judged:
        return commands([f"judge {folder} {JUDGE}" for folder in named] + [f"compare {' '.join(named)}"])
    more = "evaluation.samples_per_prompt=4 evaluation.name=more"
    return commands([f"evaluate {folder} {more}" for folder in named] + [f"compare {' '.join(named)} name=more"])


def _body(config: Compare) -> None:
    compare(config)


def main() -> None:
    """Compose, parse and compare; exits with the code of the outcome."""
    register()
    app("compare", Compare, _body, positional="runs+")


if __name__ == "__main__":
    main()
