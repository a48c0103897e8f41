"""An evaluation in the run's tracker: a run of its own beside the training run, in the same group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.config.parse import plain
from dpo.config.read import read_config
from dpo.records.read import json_file
from dpo.records.run import read_record
from dpo.records.tracking import build_tracker

JOB_TYPE = "evaluate"


def track_evaluation(run: Path, folder: Path) -> None:
    """Log the summary in `folder` under `evaluation/...` to the tracker the run was trained with."""
    config, record = read_config(run / "config.yaml"), read_record(run)
    tracker = build_tracker(config.tracking, run, plain(config), record.get("parent"), JOB_TYPE)
    tracker.log("evaluation", int(record.get("step") or 0), figures(json_file(folder / "summary.json")))
    tracker.finish(0)


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Accuracy, margin, KL, words, and each judge's level and win rate; what was not measured is left out."""
    found = {
        "accuracy": summary["pairs"]["accuracy"],
        "margin": summary["pairs"]["margin"],
        "words": summary["answers"]["policy"]["words"],
        "kl": (summary["divergence"] or {}).get("per_answer"),
    }
    for name, judged in summary["judges"].items():
        found |= {f"{name}/level": judged["policy"], f"{name}/win_rate": judged["win_rate"]}
    return {name: estimate["value"] for name, estimate in found.items() if estimate}
