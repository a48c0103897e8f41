"""Plotly figures as plain data: no library is needed to build them, the page's script draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.records.read import RunFiles

Row = dict[str, Any]
Figure = dict[str, Any]
# id, title, note
Placed = list[tuple[str, str, str]]


def training_figures(run: RunFiles) -> tuple[dict[str, Figure], Placed]:
    """Curves over steps from metrics.jsonl; a curve that was not logged is left out."""
    beta = float(run.config["dpo"]["beta"]) if run.config.get("dpo") else None
    wanted = [
        ("loss", "Loss", "", [("loss", "loss", 1.0)]),
        (
            "accuracy",
            "Implicit-reward accuracy",
            "Before step 1 all rewards are 0, each pair a tie.",
            [("rewards/accuracies", "accuracy", 1.0)],
        ),
        ("margin", "Reward margin", "", [("rewards/margins", "margin", 1.0)]),
        (
            "ratios",
            "Log-ratios",
            "Nats over the reference; both falling is likelihood displacement.",
            [("rewards/chosen", "chosen", 1 / beta), ("rewards/rejected", "rejected", 1 / beta)] if beta else [],
        ),
        ("gradient", "Gradient norm", "", [("grad_norm", "norm", 1.0)]),
        ("rate", "Learning rate", "", [("learning_rate", "rate", 1.0)]),
        (
            "throughput",
            "Throughput",
            "Pairs a second, dev evaluations included.",
            [("pairs_per_second", "pairs/s", 1.0)],
        ),
    ]
    figures: dict[str, Figure] = {}
    placed: Placed = []
    for name, title, note, curves in wanted:
        data = [curve for key, label, scale in curves for curve in _curves(run, key, label, scale)]
        if data:
            figures[f"training-{name}"] = {"data": data, "layout": {"xaxis": {"title": {"text": "step"}}}}
            placed.append((f"training-{name}", title, note))
    return figures, placed


def _curves(run: RunFiles, key: str, label: str, scale: float) -> list[Figure]:
    found = []
    for kind, rows, style in (("train", run.train, {"width": 1.5}), ("dev", run.dev, {"width": 2, "dash": "dot"})):
        points = [(row["step"], row[key] * scale) for row in rows if isinstance(row.get(key), (int, float))]
        if points:
            found.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if kind == "dev" or len(points) < 30 else "lines",
                    "name": f"{label}, {kind}",
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                    "line": style,
                    "marker": {"size": 7 if kind == "dev" else 4},
                }
            )
    return found


def evaluation_figures(
    summary: Row, samples: Sequence[Row], pairs: Sequence[Row], divergence: Sequence[Row]
) -> tuple[dict[str, Figure], Placed]:
    """What the held-out pairs and answers look like: margins, calibration, lengths, KL."""
    figures: dict[str, Figure] = {}
    placed: Placed = []

    def place(name: str, title: str, note: str, data: list[Figure], x: str, y: str, **layout: Any) -> None:
        figures[f"held-out-{name}"] = {
            "data": data,
            "layout": {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, **layout},
        }
        placed.append((f"held-out-{name}", title, note))

    beta = summary["pairs"]["beta"]
    chosen = [row["policy_chosen"] - row["reference_chosen"] for row in pairs]
    rejected = [row["policy_rejected"] - row["reference_rejected"] for row in pairs]
    if pairs:
        place(
            "ratios",
            "Log-ratios of each pair",
            "Below the line the chosen answer gained more than the rejected one.",
            [
                {"type": "scatter", "mode": "markers", "name": "pair", "x": chosen, "y": rejected,
                 "marker": {"size": 5, "opacity": 0.6}},
                {"type": "scatter", "mode": "lines", "name": "equal", "x": _span(chosen + rejected),
                 "y": _span(chosen + rejected), "line": {"width": 1, "color": "#8c959f"}},
            ],
            "chosen (nats)",
            "rejected (nats)",
            hovermode="closest",
        )  # fmt: skip
        margins = [beta * (c - r) for c, r in zip(chosen, rejected, strict=True)]
        place("margins", "Reward margins", "", [_histogram("pairs", margins)], "beta x nats", "pairs", bargap=0.05)
        bins = summary["pairs"]["calibration_bins"]
        place(
            "calibration",
            "Calibration",
            f"Stated confidence against how often it is right; error {summary['pairs']['calibration_error']:.2f}.",
            [
                {"type": "scatter", "mode": "lines+markers", "name": "pairs", "x": [b["confidence"] for b in bins],
                 "y": [b["accuracy"] for b in bins]},
                {"type": "scatter", "mode": "lines", "name": "calibrated", "x": [0.5, 1], "y": [0.5, 1],
                 "line": {"width": 1, "color": "#8c959f"}},
            ],
            "confidence",
            "accuracy",
            yaxis={"title": {"text": "accuracy"}, "range": [0, 1.05]},
        )  # fmt: skip
    if samples:
        lengths = [
            _histogram(label, [len(sample[side]["answer"].split()) for sample in samples], opacity=0.6)
            for side, label in (("baseline", "before"), ("policy", "after"))
        ]
        place("lengths", "Words an answer", "", lengths, "words", "answers", barmode="overlay")
    if divergence:
        values = [row["kl"] for row in divergence]
        place("divergence", "KL from the reference", "On the policy's own answers.", [_histogram("answers", values)],
              "nats an answer", "answers", bargap=0.05)  # fmt: skip
    return figures, placed


def _histogram(name: str, values: Sequence[float], **more: Any) -> Figure:
    return {"type": "histogram", "name": name, "x": list(values), "nbinsx": 24, **more}


def _span(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)] if values else []


def cost_figures(ledger: Mapping[str, Any]) -> tuple[dict[str, Figure], Placed]:
    """Seconds and peak memory of each phase."""
    phases = ledger.get("phases") or {}
    if not phases:
        return {}, []
    names = list(phases)
    figures: dict[str, Figure] = {}
    placed: Placed = []
    for key, title, unit in (("seconds", "Time", "seconds"), ("peak_memory_mb", "Peak memory", "MB")):
        bars = {"type": "bar", "orientation": "h", "y": names, "x": [phases[name].get(key, 0) for name in names]}
        layout = {
            "xaxis": {"title": {"text": unit}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "hovermode": "closest",
        }
        figures[f"cost-{key}"] = {"data": [bars], "layout": layout}
        placed.append((f"cost-{key}", title, ""))
    return figures, placed
