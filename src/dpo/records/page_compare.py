"""report.html of a comparison: tables, plots of quality against cost and distance, answers side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo.records.comparison_tables import cost_table, pairwise_table, quality_table
from dpo.records.figures import Figure, Placed
from dpo.records.html import write_page
from dpo.records.read import pick

Row = dict[str, Any]


def write_comparison_page(path: Path, comparison: Row, samples: Sequence[Row], show: int) -> Path:
    """Write the page. `samples`: one row a prompt with `messages` and `answers`, a list of (label, side)."""
    figures, placed = comparison_figures(comparison)
    quality, costs, pairwise = quality_table(comparison), cost_table(comparison), pairwise_table(comparison)
    return write_page(
        path,
        "compare.html",
        figures,
        title=f"{len(comparison['rows']) - 1} runs and their baseline",
        subtitle=f"evaluation {comparison['evaluation']}; written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        choice=comparison["choice"],
        notes=_notes(comparison),
        quality={"columns": quality[0], "rows": _whole(quality[1])},
        cost={"columns": costs[0], "rows": costs[1]},
        pairwise={"columns": pairwise[0], "rows": _whole(pairwise[1])},
        plots_placed=placed,
        samples=pick(list(samples), show, comparison["settings"]["seed"]),
        sample_count=len(samples),
    )


def _whole(rows: list[list[str]]) -> list[list[str]]:
    """Intervals that do not break across lines."""
    return [[row[0], *(cell.replace(", ", ",\xa0") for cell in row[1:])] for row in rows]


def _notes(comparison: Row) -> list[str]:
    settings = comparison["settings"]
    lines = [f"judge {name}: {judge['definition']}" for name, judge in comparison["judges"].items()]
    lines.append(
        f"[low, high]: {100 * settings['confidence']:.0f}% intervals, bootstrap over prompts. Every run is set against "
        "the unaligned baseline's answers to the same prompts, drawn with the same random numbers."
    )
    lines.append("Sign tests leave ties out; between runs their p-values are adjusted by Holm over all pairs.")
    if not comparison["same_baseline_answers"]:
        lines.append("The baseline's answers differ between these evaluations (other hardware or library versions).")
    return lines


def comparison_figures(comparison: Row) -> tuple[dict[str, Figure], Placed]:
    """Levels by each judge with intervals; quality against distance and against cost."""
    figures: dict[str, Figure] = {}
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
        figures[f"level-{name}"] = {
            "data": [bars],
            "layout": {
                "yaxis": {"autorange": "reversed", "automargin": True},
                "xaxis": {"tickformat": ".0%" if judge["decides"] else ""},
                "height": 120 + 34 * len(rows),
                "hovermode": "closest",
            },
        }
        placed.append((f"level-{name}", judge["label"], "With intervals."))
        near = [row for row in runs if row["kl"] is not None]
        against = [("kl", near, [row["kl"]["value"] for row in near], "KL from the reference (nats an answer)")]
        against.append(("cost", runs, [(row["cost"]["seconds"] or 0) / 60 for row in runs], "minutes, all attempts"))
        for key, kept, x, title in against:
            if not kept:
                continue
            points = {
                "type": "scatter", "mode": "markers+text", "marker": {"size": 9}, "x": x, "textposition": "top center",
                "y": [row["judges"][name]["level"]["value"] for row in kept], "text": [row["label"] for row in kept],
            }  # fmt: skip
            figures[f"{key}-{name}"] = {
                "data": [points],
                "layout": {
                    "xaxis": {"title": {"text": title}, "rangemode": "tozero"},
                    "yaxis": {"tickformat": ".0%", "rangemode": "tozero"} if judge["decides"] else {},
                    "hovermode": "closest",
                },
            }
            words = "distance" if key == "kl" else "cost"
            placed.append((f"{key}-{name}", f"Quality against {words}", f"By {name}."))
    return figures, placed
