"""A sweep's answer from disk: printed, and written as answer.json, jobs.csv and report.html. At any time, no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.text import Text

from dpo.pages.ending import commands, say
from dpo.pages.tables import to_table
from dpo.records.files import write_json, write_text
from dpo.records.terminal import terminal
from dpo.streams import clean
from dpo.sweeps.answer import answer
from dpo.sweeps.files import read_sweep
from dpo.sweeps.page import notes, write_sweep_page
from dpo.sweeps.tables import best_table, failures, job_table, seed_table, sweep_csv


def report_sweep(root: Path) -> Path:
    """Print and write the answer; returns the page's path."""
    found = answer(read_sweep(root))
    write_json(root / "answer.json", found)
    write_text(root / "jobs.csv", sweep_csv(found))
    page = write_sweep_page(root / "report.html", found)
    console = terminal()
    jobs = job_table(found, states=False)
    console.print(to_table(*jobs, "all jobs", spare=[name for name in ("time", "words") if name in jobs[0]]))
    for line in failures(found):
        console.print(Text(clean(line), overflow="fold"))
    if found["choice"]["against_best"]:
        console.print(to_table(*best_table(found), "every setting against the best", left=["verdict"]))
    seeds = seed_table(found)
    if seeds[1]:
        console.print(to_table(*seeds, "over seeds"))
    for line in notes(found):
        console.print(Text(clean(line), overflow="fold"))
    taken = [job["folder"] for job in found["jobs"] if job["label"] == found["choice"]["label"]]
    following = [
        f"{verb} {shlex.quote(str(folder))}" for folder in taken[:1] for verb in ("evaluate", "chat", "export")
    ]
    say(console, found["choice"]["reason"], [], [f"sweep report in {page}", *commands(following)])
    return page
