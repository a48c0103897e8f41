"""An evaluation in its run's tracker: on the page of the training run itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.config.parse import plain
from dpo.config.read import read_config
from dpo.pages.words import verdict_word
from dpo.records.read import json_file, json_lines, read_samples
from dpo.records.run import read_record
from dpo.records.tracking import Evaluated, build_tracker

Row = dict[str, Any]
MOST_SAMPLES = 500


def track_evaluation(run: Path, folder: Path, report: Path | None) -> None:
    """Show the evaluation in `folder` and its page in the tracker that the run was trained with."""
    config, record = read_config(run / "config.yaml"), read_record(run)
    tracker = build_tracker(config.tracking, run, plain(config), record)
    if tracker.known:
        print(f"tracking: {tracker.where}", flush=True)
    summary, samples = json_file(folder / "summary.json"), read_samples(run, folder.name)[:MOST_SAMPLES]
    columns, rows = sample_table(samples)
    step = int(record.get("step") or 0)
    found = dict(figures(summary))
    tracker.show(Evaluated(key_of(folder.name), step, found, last_figures(run), columns, rows, report))
    # The run's own end, not the evaluation's: a run that broke off stays one that broke off.
    tracker.finish(int(record.get("exit_code") or 0))


def last_figures(run: Path) -> dict[str, float]:
    """The latest value of each figure of training, under the name that trackers have it by."""
    found: dict[str, float] = {}
    for row in json_lines(run / "metrics.jsonl"):
        found |= {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "step", "time")}
    return found


def key_of(name: str) -> str:
    """What an evaluation stands under. The usual one and a sweep's have the same names in every run, so that runs can
    be set side by side."""
    return "evaluation" if name == "test" or name.startswith("sweep-") else f"evaluation/{name}"


def figures(summary: Row) -> Iterator[tuple[str, float]]:
    """Accuracy, margin, KL, words, and each judge's levels and win rates, with the ends of their intervals as `_low`
    and `_high`; what was not measured is left out."""
    pairs, answers = summary["pairs"], summary["answers"]
    found = {
        "accuracy": pairs["accuracy"],
        "margin": pairs["margin"],
        "chosen_log_ratio": pairs["chosen_log_ratio"],
        "rejected_log_ratio": pairs["rejected_log_ratio"],
        "words": answers["policy"]["words"],
        "words_before": answers["baseline"]["words"],
        "kl": (summary["divergence"] or {}).get("per_answer"),
    }
    for name, judged in summary["judges"].items():
        found |= {
            f"{name}/level": judged["policy"],
            f"{name}/level_before": judged["baseline"],
            f"{name}/difference": judged["difference"],
            f"{name}/win_rate": judged["win_rate"],
            f"{name}/win_rate_at_equal_length": judged["length_controlled_win_rate"],
        }
    for part, of_part in (summary.get("parts") or {}).items():
        found |= {f"{part}/{name}": of_part["pairs"][name] for name in ("accuracy", "margin")}
    for name, estimate in found.items():
        if estimate:
            ends = {f"{name}_{end}": estimate[end] for end in ("low", "high")}
            yield from ({name: estimate["value"]} | ends).items()


def sample_table(samples: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Prompts and answers before and after, with what each judge said of them."""
    judges = list(dict.fromkeys(name for sample in samples for name in sample["policy"]["verdicts"]))
    sides = (("baseline", "before"), ("policy", "after"))
    columns = ["prompt", *(word for _, word in sides), *(f"{judge} {word}" for judge in judges for _, word in sides)]
    rows = []
    for sample in samples:
        said = [
            verdict_word(sample[side]["verdicts"][judge]) if judge in sample[side]["verdicts"] else ""
            for judge in judges
            for side, _ in sides
        ]
        rows.append([sample["messages"][-1]["content"], *(str(sample[side]["answer"]) for side, _ in sides), *said])
    return columns, rows
