"""Plots of a sweep as plain data: heat maps over two swept keys, the reward/KL frontier, seeds with their spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from dpo.pages.plots import Placed, Plot
from dpo.sweeps.files import label_of, word

Row = dict[str, Any]
Metric = tuple[str, str, str, Callable[[Row], Row | float | None]]
LEAST_SPAN = 0.2
"""Shares a colour scale spans at least."""
MOST_MAPS = 4
"""With more than two swept keys there is a map for each combination of the rest, up to this many a metric."""


def metrics(found: Row) -> list[Metric]:
    """(id, title, number format, what to read off a setting) of everything a map or a line is drawn of."""
    wanted: list[Metric] = [("accuracy", "Reward accuracy", ".0%", lambda row: row["accuracy"])]
    for name in found["judges"]:
        wanted.append((f"wins-{name}", f"Win rate by {name}", ".0%", lambda row, n=name: row["judges"][n]["win_rate"]))  # type: ignore[misc]
    wanted += [
        ("kl", "KL from the reference (nats an answer)", ".3~g", lambda row: row["kl"]),
        ("words", "Answer length (words)", ".1f", lambda row: row["words"]),
        ("minutes", "Cost (minutes of training a job, all attempts)", ".1f", lambda row: (row["seconds"] or 0.0) / 60),
    ]
    if any(row["money"] for row in found["settings"]):
        wanted.append(("money", "Cost (money a job)", ".4~g", lambda row: row["money"]))
    return [metric for metric in wanted if any(metric[3](row) is not None for row in found["settings"])]


CORNERS = (("top", "left"), ("bottom", "left"), ("top", "right"), ("bottom", "right"))
ROOM = 1.35
"""The axis ends beyond the last point, whose name may stand on its right."""
NEAR_START = 0.15
"""Share of an axis at whose start a name has no room on its left."""
LABEL = 10
"""Characters of a value at a point, which has its whole name under the pointer."""


def sweep_plots(found: Row) -> tuple[dict[str, Plot], Placed]:
    """Everything the page draws."""
    plots: dict[str, Plot] = {}
    placed: Placed = []
    if not found["settings"]:
        return plots, placed
    axes = found["axes"]
    for metric in metrics(found):
        made = _maps(found, metric, axes) if len(axes) >= 2 else _lines(found, metric, axes) if axes else []
        for number, (figure, note) in enumerate(made):
            key = f"sweep-{metric[0]}-{number}"
            plots[key] = figure
            placed.append((key, metric[1], note))
    for key, title, figure in _frontiers(found):
        plots[key] = figure
        names = " / ".join(map(_short, axes))
        note = "Settings on the line are nearest to the reference for what they reach."
        placed.append((key, title, f"{note} At the points: {names}." if axes else note))
    for key, title, figure in _seeds(found):
        plots[key] = figure
        placed.append((key, title, "Each seed, and the mean with its 95% t interval."))
    return plots, placed


def _value(read: Row | float | None) -> float | None:
    return read["value"] if isinstance(read, dict) else read


def _hover(read: Row | float | None, form: str) -> str:
    """The value with its interval, in words."""
    if read is None:
        return "not there"
    if not isinstance(read, dict):
        return f"{read:.1f}"
    scale, unit = (100, "%") if "%" in form else (1, "")
    return f"{scale * read['value']:.3g}{unit} [{scale * read['low']:.3g}, {scale * read['high']:.3g}]"


def _levels(found: Row, key: str) -> list[Any]:
    values = {word(row["values"][key]): row["values"][key] for row in found["jobs"]}
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    return sorted(values.values()) if numbers else list(values.values())


def _maps(found: Row, metric: Metric, axes: Sequence[str]) -> list[tuple[Plot, str]]:
    _, _, form, read = metric
    first, second, *rest = axes
    rows, columns = _levels(found, first), _levels(found, second)
    # Where every job failed there is nothing to draw; those are listed by name.
    reached = {tuple(word(row["values"][key]) for key in rest) for row in found["settings"]}
    combinations = [c for c in product(*(_levels(found, key) for key in rest)) if tuple(map(word, c)) in reached]
    made = []
    for fixed in combinations[:MOST_MAPS]:
        cells = {
            (word(row["values"][first]), word(row["values"][second])): read(row)
            for row in found["settings"]
            if all(word(row["values"][key]) == word(value) for key, value in zip(rest, fixed, strict=True))
        }
        grid = [[cells.get((word(y), word(x))) for x in columns] for y in rows]
        chosen = found["choice"]["label"]
        mark = next((row["values"] for row in found["settings"] if row["label"] == chosen), None)
        data: Plot = {
            "type": "heatmap",
            "x": [word(x) for x in columns],
            "y": [word(y) for y in rows],
            "z": [[_value(cell) for cell in line] for line in grid],
            "texttemplate": f"%{{z:{form}}}",
            "text": [[_hover(cell, form) for cell in line] for line in grid],
            "hovertemplate": f"{_short(first)} %{{y}}, {_short(second)} %{{x}}: %{{text}}<extra></extra>",
            "colorscale": [[0, "#f0f4fa"], [1, "#3b6fb5"]],
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
        }
        layout: Plot = {
            "xaxis": {"type": "category", "title": {"text": _short(second)}},
            "yaxis": {"type": "category", "title": {"text": _short(first)}, "automargin": True},
            "height": 110 + 52 * len(rows),
            "hovermode": "closest",
        }
        if "%" in form:
            # Colours of a few points' difference must not look like a great one.
            known = [_value(cell) for line in grid for cell in line if cell is not None]
            middle, half = (min(known) + max(known)) / 2, max(LEAST_SPAN, max(known) - min(known)) / 2  # type: ignore[type-var,operator]
            data |= {"zmin": middle - half, "zmax": middle + half}
        # By position: on a category axis the text of a number would be taken for one.
        empty = [(i, j) for i, line in enumerate(grid) for j, cell in enumerate(line) if cell is None]
        others = dict(zip(rest, fixed, strict=True))
        layout["annotations"] = [
            {"x": j, "y": i, "text": _absent(found, {first: rows[i], second: columns[j], **others}),
             "showarrow": False, "font": {"color": "#e5534b", "size": 11}}
            for i, j in empty
        ]  # fmt: skip
        if mark is not None and all(word(mark[key]) == word(value) for key, value in zip(rest, fixed, strict=True)):
            x, y = data["x"].index(word(mark[second])), data["y"].index(word(mark[first]))
            box = {"type": "rect", "x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            layout["shapes"] = [{**box, "line": {"color": "#d1581a", "width": 3}}]
        made.append(({"data": [data], "layout": layout}, label_of(dict(zip(rest, fixed, strict=True)))))
    return made


def _absent(found: Row, values: Row) -> str:
    """Why a cell is empty: the states of its jobs."""
    states = {
        job["state"] for job in found["jobs"] if all(job["values"][key] == value for key, value in values.items())
    }
    return ", ".join(sorted(states))


def _lines(found: Row, metric: Metric, axes: Sequence[str]) -> list[tuple[Plot, str]]:
    """One swept key: a point a value, with its interval."""
    _, _, form, read = metric
    (key,) = axes
    order = [word(value) for value in _levels(found, key)]
    rows = sorted(found["settings"], key=lambda row: order.index(word(row["values"][key])))
    data: Plot = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [word(row["values"][key]) for row in rows],
        "y": [_value(read(row)) for row in rows],
        "marker": {"size": 9},
        "text": [_hover(read(row), form) for row in rows],
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }
    if any(isinstance(read(row), dict) for row in rows):
        data["error_y"] = _bars([read(row) for row in rows])
    layout = {
        "xaxis": {"type": "category", "title": {"text": _short(key)}},
        "yaxis": {"tickformat": form if "%" in form else "", "automargin": True},
        "hovermode": "closest",
    }
    return [({"data": [data], "layout": layout}, "")]


def _bars(estimates: Sequence[Any]) -> Plot:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e["high"] - e["value"] if e and e["high"] is not None else None for e in estimates],
        "arrayminus": [e["value"] - e["low"] if e and e["low"] is not None else None for e in estimates],
        "color": "#8c959f",
        "thickness": 1,
        "width": 3,
    }


def _frontiers(found: Row) -> list[tuple[str, str, Plot]]:
    """Quality against KL, with the line of settings no other one dominates."""
    rows = [row for row in found["settings"] if row["kl"] is not None]
    if not rows:
        return []
    wanted: list[tuple[str, str, Callable[[Row], Row]]] = [("accuracy", "Reward accuracy", lambda row: row["accuracy"])]
    for name in found["judges"]:
        wanted.append((name, f"Win rate by {name}", lambda row, n=name: row["judges"][n]["win_rate"]))  # type: ignore[misc]
    made = []
    for key, title, read in wanted:
        points = sorted(((row["kl"]["value"], read(row)["value"]) for row in rows), key=lambda p: (p[0], -p[1]))
        front: list[tuple[float, float]] = []
        for point in points:
            if not front or point[1] > front[-1][1]:
                front.append(point)
        chosen = [row["label"] == found["choice"]["label"] for row in rows]
        furthest = max(row["kl"]["value"] for row in rows)
        # Names of neighbours take turns around their points; where the axis begins there is room on one side alone.
        order = sorted(range(len(rows)), key=lambda i: rows[i]["kl"]["value"])
        positions = [""] * len(rows)
        for turn, i in enumerate(order):
            height, side = CORNERS[turn % len(CORNERS)]
            positions[i] = f"{height} {'right' if rows[i]['kl']['value'] < NEAR_START * furthest else side}"
        data = [
            {"type": "scatter", "mode": "lines", "name": "frontier", "x": [x for x, _ in front],
             "y": [y for _, y in front], "line": {"width": 1.5, "shape": "hv", "color": "#8c959f"},
             "hoverinfo": "skip"},
            {"type": "scatter", "mode": "markers+text", "name": "setting", "x": [row["kl"]["value"] for row in rows],
             "y": [read(row)["value"] for row in rows], "error_y": _bars([read(row) for row in rows]),
             "error_x": _bars([row["kl"] for row in rows]), "customdata": [row["label"] for row in rows],
             "text": [" / ".join(word(row["values"][key])[:LABEL] for key in found["axes"]) for row in rows],
             "textposition": positions, "cliponaxis": False, "textfont": {"size": 11},
             "hovertemplate": "%{customdata}: %{y:.0%} at %{x:.3g} nats<extra></extra>",
             "marker": {"size": 10, "color": ["#d1581a" if c else "#1f6feb" for c in chosen]}},
        ]  # fmt: skip
        layout = {
            "xaxis": {
                "title": {"text": "KL from the reference (nats an answer)"},
                "range": [0, ROOM * furthest or 1.0],
            },
            "yaxis": {"tickformat": ".0%", "automargin": True},
            "hovermode": "closest",
            "showlegend": False,
            "height": 320,
        }
        made.append((f"sweep-frontier-{key}", f"{title} against KL", {"data": data, "layout": layout}))
    return made


def _seeds(found: Row) -> list[tuple[str, str, Plot]]:
    settings = [row for row in found["settings"] if row["over_seeds"]]
    if not settings:
        return []
    made = []
    for name in ("accuracy", *found["judges"]):
        title = "Reward accuracy over seeds" if name == "accuracy" else f"Level by {name} over seeds"
        dots: Plot = {"type": "scatter", "mode": "markers", "name": "seed", "x": [], "y": [],
                        "marker": {"size": 7, "opacity": 0.6, "color": "#8c959f"}}  # fmt: skip
        for row in settings:
            for job in found["jobs"]:
                level = job["accuracy"] if name == "accuracy" else (job["judges"].get(name) or {}).get("level")
                if level is not None and all(job["values"][key] == value for key, value in row["values"].items()):
                    dots["x"].append(row["label"])
                    dots["y"].append(level["value"])
        means = [row["over_seeds"][name] for row in settings]
        mean = {"type": "scatter", "mode": "markers", "name": "mean", "x": [row["label"] for row in settings],
                "y": [e["value"] for e in means], "error_y": _bars(means), "marker": {"size": 10}}  # fmt: skip
        percent = name == "accuracy" or found["judges"][name]["decides"]
        layout = {
            "xaxis": {"type": "category", "automargin": True},
            "yaxis": {"tickformat": ".0%" if percent else "", "automargin": True},
            "hovermode": "closest",
        }
        made.append((f"sweep-seeds-{name}", title, {"data": [dots, mean], "layout": layout}))
    return made


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")
