"""report.html of a comparison: tables, plots of quality against cost and distance, answers side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo.pages.comparison_tables import (
    ALIKE,
    COST_NOTE,
    cost_table,
    difference_table,
    figure_tables,
    pairwise_table,
    quality_table,
)
from dpo.pages.headline import EQUAL_LENGTH
from dpo.pages.html import write_page
from dpo.pages.plots import Placed, Plot
from dpo.pages.shares import NOTE, curve, sentences
from dpo.pages.tables import percent
from dpo.records.read import pick

Row = dict[str, Any]


def write_comparison_page(path: Path, comparison: Row, samples: Sequence[Row], show: int) -> Path:
    """Write the page. `samples`: one row a prompt with `messages` and `answers`, a list of (label, side)."""
    plots, placed = comparison_plots(comparison)
    return write_page(
        path,
        "compare.html",
        plots,
        title=f"{len(comparison['rows']) - 1} runs and their baseline",
        subtitle=f"evaluation {comparison['evaluation']}; written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        choice=comparison["choice"],
        differs=difference_table(comparison),
        alike=ALIKE,
        caution=comparison["caution"],
        notes=_notes(comparison),
        quality=quality_table(comparison),
        figures=figure_tables(comparison),
        cost=cost_table(comparison),
        cost_note=COST_NOTE,
        methods=methods_of(comparison),
        pairwise=pairwise_table(comparison),
        plots_placed=placed,
        samples=pick(list(samples), show, comparison["settings"]["seed"]),
        sample_count=len(samples),
    )


def methods_of(comparison: Row) -> Row | None:
    """What the page shows of methods set against RLHF: sentences, the curve against KL and cost, what they mean."""
    found = comparison["methods"]
    return found and {"sentences": sentences(found), "curve": curve(found), "note": NOTE, "judge": found["judge"]}


def _notes(comparison: Row) -> list[str]:
    settings = comparison["settings"]
    judges = {**comparison["judges"], **comparison["figures"]}
    lines = [f"judge {name}: {judge['definition']}" for name, judge in judges.items()]
    lines.append(
        f"[low, high]: {percent(settings['confidence'])} intervals, bootstrap over prompts. Every run is set against "
        "the unaligned baseline's answers to the same prompts, drawn with the same random numbers."
    )
    if comparison["judges"]:
        lines.append(EQUAL_LENGTH)
    lines.append("Sign tests leave ties out; between runs their p-values are adjusted by Holm over all pairs.")
    if not comparison["same_baseline_answers"]:
        lines.append("The baseline's answers differ between these evaluations (other hardware or library versions).")
    return lines


def comparison_plots(comparison: Row) -> tuple[dict[str, Plot], Placed]:
    """Levels by each judge with intervals; quality against distance and against cost."""
    plots: dict[str, Plot] = {}
    placed: Placed = []
    rows = comparison["rows"]
    runs = rows[1:]
    for name, judge in comparison["judges"].items():
        levels = [row["judges"][name]["level"] for row in rows]
        bars = {
            "type": "scatter", "mode": "markers", "marker": {"size": 9}, "name": name,
            "x": [e["value"] for e in levels], "y": [row["label"] for row in rows],
            "error_x": {"type": "data", "symmetric": False, "array": [e["high"] - e["value"] for e in levels],
                        "arrayminus": [e["value"] - e["low"] for e in levels]},
        }  # fmt: skip
        plots[f"level-{name}"] = {
            "data": [bars],
            "layout": {
                "yaxis": {"autorange": "reversed", "automargin": True},
                "xaxis": {"tickformat": ".0%" if judge["decides"] else "", "title": {"text": judge["label"]}},
                "height": 120 + 34 * len(rows),
                "hovermode": "closest",
            },
        }
        placed.append(
            (f"level-{name}", f"Level by {name}", f"{percent(comparison['settings']['confidence'])} intervals.")
        )
        near = [row for row in runs if row["kl"] is not None]
        against = [("kl", near, [row["kl"]["value"] for row in near], "KL from the reference (nats an answer)")]
        timed = [row for row in runs if row["cost"]["seconds"] is not None]
        against.append(("cost", timed, [row["cost"]["seconds"] / 60 for row in timed], "minutes of training"))
        for key, kept, x, title in against:
            if not kept:
                continue
            levels = [row["judges"][name]["level"]["value"] for row in kept]
            points = {
                "type": "scatter", "mode": "markers+text", "marker": {"size": 9}, "x": x, "y": levels,
                # Names stand towards the middle and may leave the axes: none is cut.
                "textposition": ["top left" if value > max(x) / 2 else "top right" for value in x],
                "cliponaxis": False, "text": [row["label"] for row in kept],
            }  # fmt: skip
            room = {"range": [0, 1.2 * max(levels)]} if judge["decides"] and max(levels) > 0 else {}
            plots[f"{key}-{name}"] = {
                "data": [points],
                "layout": {
                    "xaxis": {"title": {"text": title}, "range": [0, 1.08 * max(x) or 1]},
                    "yaxis": {
                        "tickformat": ".0%" if judge["decides"] else "",
                        "title": {"text": judge["label"]},
                        **room,
                    },
                    "hovermode": "closest",
                },
            }
            words = "distance" if key == "kl" else "cost"
            placed.append((f"{key}-{name}", f"Quality against {words}", f"By {name}."))
    return plots, placed
