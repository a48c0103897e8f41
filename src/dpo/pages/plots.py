"""Plotly plots as plain data: no library is needed to build them, the page's script draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.config.losses import REFERENCE_FREE
from dpo.data.words import word_count
from dpo.pages.tables import number
from dpo.records.metrics import tied
from dpo.records.read import RunFiles

Row = dict[str, Any]
Plot = dict[str, Any]
# id, title, note
Placed = list[tuple[str, str, str]]
LOG_PROBS = {f"{model}_{side}" for model in ("policy", "reference") for side in ("chosen", "rejected")}
ACCURACY, TIED = "rewards/accuracies", 0.5
# Colours of a plot's first and second metric, pale on training pairs, strong on dev pairs; seen on white and on black.
TRAIN, DEV = ("#8fb8e8", "#e8b48f"), ("#2f6fd6", "#d1581a")


def training_plots(run: RunFiles) -> tuple[dict[str, Plot], Placed]:
    """Curves over steps from metrics.jsonl; a curve that was not logged is left out."""
    dpo = run.config.get("dpo") or {}
    # Without a reference rewards are log-probs, which the plot of log-ratios would misname.
    beta = None if REFERENCE_FREE & set(dpo.get("loss") or []) else dpo.get("beta")
    ratios = [(f"rewards/{side}", side, 1 / float(beta)) for side in ("chosen", "rejected")] if beta else []
    wanted: list[tuple[str, str, str, str, list[tuple[str, str, float]], Row]] = [
        ("loss", "Loss", "", "", [("loss", "loss", 1.0)], {}),
        (
            "accuracy",
            "Implicit-reward accuracy",
            "Before step 1 all rewards are 0, each pair a tie." if beta else "By the policy's own log-probs.",
            "pairs ranked right",
            [(ACCURACY, "accuracy", 1.0)],
            {"tickformat": ".0%", "range": [-0.02, 1.02]},
        ),
        ("margin", "Reward margin", "", "beta x nats", [("rewards/margins", "margin", 1.0)], {}),
        (
            "ratios",
            "Log-ratios",
            "Nats over the reference; both falling is likelihood displacement.",
            "nats an answer",
            ratios,
            {},
        ),
        (
            "reward",
            "Reward",
            "Mean of answers drawn in a step, by the reward model.",
            "",
            [("reward", "reward", 1.0)],
            {},
        ),
        ("kl", "KL from the reference", "As the loss estimates it.", "nats an answer", [("kl", "KL", 1.0)], {}),
        ("gradient", "Gradient norm", "Before clipping.", "", [("grad_norm", "norm", 1.0)], {"rangemode": "tozero"}),
        (
            "rate",
            "Learning rate",
            "",
            "",
            [("learning_rate", "rate", 1.0)],
            {"exponentformat": "e", "rangemode": "tozero"},
        ),
        (
            "throughput",
            "Throughput",
            "Mean since the latest start, dev evaluations included.",
            "pairs a second",
            [("pairs_per_second", "pairs/s", 1.0)],
            {"rangemode": "tozero"},
        ),
    ]
    plots: dict[str, Plot] = {}
    placed: Placed = []
    for name, title, note, unit, curves, axis in wanted:
        data = [curve for i, (key, label, scale) in enumerate(curves) for curve in _curves(run, key, label, scale, i)]
        if data:
            layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": unit}, **axis}}
            plots[f"training-{name}"] = {"data": data, "layout": layout}
            placed.append((f"training-{name}", title, note))
    return plots, placed


def _curves(run: RunFiles, key: str, label: str, scale: float, nth: int) -> list[Plot]:
    """The training curve and the dev curve of a metric, the latter darker, dotted and with marks."""
    found = []
    for kind, rows, style, colors in (
        ("train", run.train, {"width": 1.5}, TRAIN),
        ("dev", run.dev, {"width": 2, "dash": "dot"}, DEV),
    ):
        points = [
            (row["step"], TIED if key == ACCURACY and tied(row) else row[key] * scale)
            for row in rows
            if isinstance(row.get(key), (int, float))
        ]
        if points:
            found.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if kind == "dev" or len(points) < 30 else "lines",
                    "name": f"{label}, {kind}",
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                    "line": {**style, "color": colors[nth]},
                    "marker": {"size": 7 if kind == "dev" else 4},
                }
            )
    return found


def evaluation_plots(
    summary: Row, samples: Sequence[Row], pairs: Sequence[Row], divergence: Sequence[Row]
) -> tuple[dict[str, Plot], Placed]:
    """What the held-out pairs and answers look like: margins, calibration, lengths, KL."""
    plots: dict[str, Plot] = {}
    placed: Placed = []

    def place(name: str, title: str, note: str, data: list[Plot], x: str, y: str, **layout: Any) -> None:
        plots[f"held-out-{name}"] = {
            "data": data,
            "layout": {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, **layout},
        }
        placed.append((f"held-out-{name}", title, note))

    ratios = [(row["policy_chosen"] - row["reference_chosen"], row["policy_rejected"] - row["reference_rejected"])
              for row in pairs if row.keys() >= LOG_PROBS]  # fmt: skip
    if ratios:
        every = [x for pair in ratios for x in pair]
        ends = [min(every), max(every)]
        place(
            "ratios",
            "Log-ratios of each pair",
            "Below the line the chosen answer gained more than the rejected one.",
            [
                {"type": "scatter", "mode": "markers", "name": "pair", "x": [chosen for chosen, _ in ratios],
                 "y": [rejected for _, rejected in ratios], "marker": {"size": 5, "opacity": 0.6}},
                {"type": "scatter", "mode": "lines", "name": "equal", "x": ends, "y": ends,
                 "line": {"width": 1, "color": "#8c959f"}},
            ],
            "chosen (nats)",
            "rejected (nats)",
            hovermode="closest",
        )  # fmt: skip
    beta = summary["pairs"]["beta"]
    if ratios and beta:
        margins = [_histogram("pairs", [beta * (chosen - rejected) for chosen, rejected in ratios])]
        place("margins", "Reward margins", "Right of 0 the pair is ranked right.", margins, "beta x nats", "pairs",
              bargap=0.05, shapes=[{"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0,
                                    "line": {"width": 1, "color": "#59636e"}}])  # fmt: skip
    bins = [b for b in summary["pairs"]["calibration_bins"] if {"confidence", "accuracy"} <= b.keys()]
    if bins:
        place(
            "calibration",
            "Calibration",
            f"Stated confidence against how often it is right; error {number(summary['pairs']['calibration_error'])}.",
            [
                {"type": "scatter", "mode": "lines+markers", "name": "pairs", "x": [b["confidence"] for b in bins],
                 "y": [b["accuracy"] for b in bins]},
                {"type": "scatter", "mode": "lines", "name": "calibrated", "x": [0.5, 1], "y": [0.5, 1],
                 "line": {"width": 1, "color": "#8c959f"}},
            ],
            "confidence",
            "ranked right",
            yaxis={"title": {"text": "ranked right"}, "range": [0, 1.05], "tickformat": ".0%"},
            xaxis={"title": {"text": "confidence"}, "tickformat": ".0%"},
        )  # fmt: skip
    if samples:
        lengths = [
            _histogram(label, [word_count(str(sample[side]["answer"])) for sample in samples], opacity=0.6)
            for side, label in (("baseline", "before"), ("policy", "after"))
        ]
        place("lengths", "Words an answer", "", lengths, "words", "answers", barmode="overlay")
    if divergence:
        values = [row["kl"] for row in divergence if "kl" in row]
        place("divergence", "KL from the reference", "On the policy's own answers.", [_histogram("answers", values)],
              "nats an answer", "answers", bargap=0.05)  # fmt: skip
    return plots, placed


def _histogram(name: str, values: Sequence[float], **more: Any) -> Plot:
    return {"type": "histogram", "name": name, "x": list(values), "nbinsx": 24, **more}


def cost_plots(ledger: Mapping[str, Any]) -> tuple[dict[str, Plot], Placed]:
    """Seconds and peak memory of each phase."""
    phases = ledger.get("phases") or {}
    if not phases:
        return {}, []
    names = list(phases)
    plots: dict[str, Plot] = {}
    placed: Placed = []
    for key, title, unit in (("seconds", "Time", "seconds"), ("peak_memory_mb", "Peak memory", "MB")):
        bars = {"type": "bar", "orientation": "h", "y": names, "x": [phases[name].get(key, 0) for name in names]}
        layout = {
            "xaxis": {"title": {"text": unit}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "hovermode": "closest",
        }
        plots[f"cost-{key}"] = {"data": [bars], "layout": layout}
        placed.append((f"cost-{key}", title, ""))
    return plots, placed
