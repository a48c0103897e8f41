"""report.html of a sweep: the answer first, then what it rests on."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from dpo.pages.html import write_page
from dpo.pages.tables import counted
from dpo.records.judged import UNFIT
from dpo.sweeps.plots import sweep_plots
from dpo.sweeps.tables import best_table, failures, job_table, seed_table

Row = dict[str, Any]


WHOLE = 32
"""Characters of a cell that stay on one line."""


def write_sweep_page(path: Path, found: Row) -> Path:
    """Write the page of an answer (`dpo.sweeps.answer`); returns its path."""
    plots, placed = sweep_plots(found)
    states = Counter(job["state"] for job in found["jobs"])
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return write_page(
        path,
        "sweep.html",
        plots,
        title=Path(found["folder"]).name,
        subtitle=f"{len(found['jobs'])} jobs over {', '.join(found['keys']) or 'one setting'}: {counted}; "
        f"written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        choice=found["choice"],
        # Accuracies of pairs alone are a hint.
        sure=found["choice"]["label"] is not None and found["choice"]["by"] in found["judges"],
        notes=notes(found),
        failures=failures(found),
        plots_placed=placed,
        best=_table(best_table(found)) if found["choice"]["against_best"] else {"rows": []},
        seeds=_table(seed_table(found)) if found["settings"] else {"rows": []},
        jobs=_table(job_table(found, states=True)),
    )


def _table(table: tuple[list[str], list[list[str]]]) -> Row:
    """Labels that are not long, and intervals, do not break across lines: a narrow screen scrolls the table."""
    columns, rows = table

    def whole(cells: list[str]) -> list[str]:
        return [cell.replace(" ", "\xa0") if len(cell) <= WHOLE else cell for cell in cells]

    return {"columns": whole(columns), "rows": [whole(row) for row in rows]}


def notes(found: Row) -> list[str]:
    """What the figures rest on."""
    if found["basis"] == "dev":
        return ["No evaluation is there: figures are the dev metrics of training. Wilson intervals, 95%; not paired."]
    lines = [f"judge {name}: {judge['definition']}" for name, judge in found["judges"].items()]
    if "held_out" in found:
        held = found["held_out"]
        lines.insert(
            0,
            f"Every job was evaluated on the same {held['pairs']} {held['split']} pairs and {held['prompts']} prompts, "
            "so settings are compared pair by pair and prompt by prompt.",
        )
        lines += [
            f"judge {name} decided {judge['answers']} answers in every job; only those are compared."
            for name, judge in found["judges"].items()
            if judge["answers"] < held["prompts"]
        ]
        lines += [f"judge {name} is left out: {UNFIT}" for name in found["left_out"]]
        m, criteria = counted(len(found["settings"]), "setting"), len(found["judges"]) + 1
        over = "1 criterion" if criteria == 1 else f"{criteria} criteria"
        lines.append(
            f"[low, high]: 95% bootstrap intervals over prompts. Those that decide are widened for the {m} and {over} "
            "looked at (Bonferroni), so that picking the best of them is paid for."
        )
        if all(row["seeds"] == 1 for row in found["settings"]):
            lines.append(
                "One seed a setting: what the seed alone moves is not in these intervals (add seed=0,1,2 to see it)."
            )
        else:
            lines.append("With several seeds the bootstrap draws seeds and prompts anew.")
        if found["held_out"]["split"] == "dev":
            lines.append("The dev split chose; report the chosen run on test: python -m dpo.evaluate RUN.")
    if "groups" in found:
        lines.append(
            "Jobs of different groups answered other prompts or started elsewhere: "
            "their figures stand side by side, not against each other."
        )
    return lines
