"""Runs against the unaligned baseline and against each other, on the same prompts. Reads what `evaluate` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dpo.errors import ConfigError
from dpo.evaluation.statistics import bootstrap_mean, compare_scores, holm
from dpo.records.read import RunFiles, read_pairs, read_run, read_samples, read_summary
from dpo.records.tables import number, points

Row = dict[str, Any]
BASELINE = "baseline"
# A run is only preferred for being nearer to the reference when its KL is at most this share of the best one's.
NEARER = 0.8
# What two evaluations must share for their answers to be comparable: (key of summary.json, what a reader calls it).
SHARED = (
    ("base", "base weights"),
    ("quantization", "quantization of the base"),
    ("split", "split"),
    ("held_out", "held-out pairs"),
    ("prompts", "prompts"),
)
SHARED_SETTINGS = ("temperature", "top_k", "max_new_tokens", "seed", "samples_per_prompt")


@dataclass(frozen=True)
class Entry:
    """One evaluated run: its label in tables, files, summary, and rows in one fixed order."""

    label: str
    run: RunFiles
    summary: Row
    samples: list[Row]
    pairs: list[Row]


def read_entries(folders: Sequence[Path], evaluation: str) -> list[Entry]:
    """Read the evaluation of each run; raises ConfigError when one is missing or they do not measure the same thing."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("runs: the same run is named twice")
    labels = _labels(folders)
    entries = []
    for folder, label in zip(folders, labels, strict=True):
        run, summary = read_run(folder), read_summary(folder, evaluation)
        samples = sorted(read_samples(folder, evaluation), key=lambda row: (row["prompt"], row["sample"]))
        pairs = sorted(read_pairs(folder, evaluation), key=lambda row: row["id"])
        entries.append(Entry(label, run, summary, samples, pairs))
    for entry in entries[1:]:
        check_comparable(entries[0], entry)
    return entries


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest names that tell the runs apart: run name, time or overrides, the whole folder name, both."""
    paths = [folder.resolve() for folder in folders]
    for name in (
        lambda path: path.parent.name,
        lambda path: path.name.rpartition("-")[0] or path.name,
        lambda path: path.name,
        lambda path: f"{path.parent.name}/{path.name}",
    ):
        labels = [name(path) for path in paths]
        if len(set(labels)) == len(labels) and BASELINE not in labels:
            return labels
    return [str(path) for path in paths]


def check_comparable(first: Entry, other: Entry) -> None:
    """Raise ConfigError when two evaluations did not measure the same thing in the same way."""
    for key, words in SHARED:
        if first.summary[key] != other.summary[key]:
            raise ConfigError(
                f"{other.label}: other {words} than {first.label}: {other.summary[key]} against {first.summary[key]}\n"
                "only runs of one base, evaluated on the same held-out set, can be compared"
            )
    for key in SHARED_SETTINGS:
        mine, theirs = other.summary["settings"][key], first.summary["settings"][key]
        if mine != theirs:
            raise ConfigError(
                f"{other.label}: evaluated with {key}={mine}, {first.label} with {theirs}\n"
                f"evaluate both the same way under a new name: evaluation.name=NEW evaluation.{key}={theirs}"
            )


def compare(entries: Sequence[Entry], resamples: int, confidence: float, seed: int) -> Row:
    """The comparison as plain data: a row a run (the baseline first), every two runs against each other, a choice.

    Pairwise p-values are sign tests adjusted by Holm over all pairs of one judge.
    """
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    judges = [name for name in entries[0].summary["judges"] if all(name in e.summary["judges"] for e in entries)]
    rows = [_baseline_row(entries[0], judges), *(_run_row(entry, judges) for entry in entries)]
    pairwise = _pairwise(entries, judges, settings)
    return {
        "evaluation": entries[0].summary["name"],
        "shared": {key: entries[0].summary[key] for key, _ in SHARED},
        "settings": settings | {key: entries[0].summary["settings"][key] for key in SHARED_SETTINGS},
        "judges": {
            name: {key: entries[0].summary["judges"][name][key] for key in ("label", "definition", "decides")}
            for name in judges
        },
        "same_baseline_answers": _same_baseline(entries),
        "rows": rows,
        "pairwise": pairwise,
        "choice": _choice(rows, pairwise, entries[0].summary, judges) if judges else None,
    }


def _baseline_row(entry: Entry, judges: Sequence[str]) -> Row:
    answers = entry.summary["answers"]
    return {
        "label": BASELINE,
        "accuracy": None,  # all its implicit rewards are 0
        "kl": None,
        "margin": None,
        "words": answers["baseline"]["words"],
        "truncated": answers["baseline"]["truncated"] / answers["answers"],
        "judges": {name: {"level": entry.summary["judges"][name]["baseline"]} for name in judges},
        "cost": None,
    }


def _run_row(entry: Entry, judges: Sequence[str]) -> Row:
    pairs, answers, ledger = entry.summary["pairs"], entry.summary["answers"], entry.run.ledger
    divergence = entry.summary["divergence"]
    phases = ledger.get("phases") or {}
    return {
        "label": entry.label,
        "folder": str(entry.run.folder),
        "state": entry.run.state,
        "accuracy": pairs["accuracy"],
        "accuracy_gain": pairs["accuracy_gain"],
        "margin": pairs["margin"],
        "chosen_log_ratio": pairs["chosen_log_ratio"],
        "rejected_log_ratio": pairs["rejected_log_ratio"],
        "kl": divergence["per_answer"] if divergence else None,
        "words": answers["policy"]["words"],
        "truncated": answers["policy"]["truncated"] / answers["answers"],
        "judges": {name: _judged(entry.summary["judges"][name]) for name in judges},
        "cost": {
            "seconds": ledger.get("seconds"),
            "gpu_hours": (ledger.get("gpu_seconds") or 0) / 3600,
            "peak_memory_mb": max((phase.get("peak_memory_mb", 0) for phase in phases.values()), default=None),
            "money": ledger.get("cost"),
            "watt_hours": None if ledger.get("energy_joules") is None else ledger["energy_joules"] / 3600,
            "attempts": len(entry.run.record.get("attempts") or []),
        },
    }


def _judged(judged: Row) -> Row:
    kept = ("difference", "wins", "ties", "losses", "win_rate", "length_controlled_win_rate", "sign_test_p")
    return {"level": judged["policy"], **{key: judged[key] for key in kept}}


def _outcomes(entry: Entry, judge: str) -> np.ndarray:
    """The policy's outcome on each sample, NaN where it is undecided."""
    return np.array([sample["policy"]["verdicts"][judge]["outcome"] for sample in entry.samples], dtype=np.float64)


def _correct(entry: Entry) -> np.ndarray:
    chosen = np.array([row["policy_chosen"] - row["reference_chosen"] for row in entry.pairs])
    rejected = np.array([row["policy_rejected"] - row["reference_rejected"] for row in entry.pairs])
    return (chosen > rejected) + 0.5 * (chosen == rejected)


def _pairwise(entries: Sequence[Entry], judges: Sequence[str], settings: Row) -> list[Row]:
    """Every two runs, first minus second: accuracy on the same pairs, and each judge on the same prompts."""
    found: list[Row] = []
    for first, second in combinations(entries, 2):
        groups = [row["group"] for row in first.pairs]
        prompts = [sample["prompt"] for sample in first.samples]
        row: Row = {
            "first": first.label,
            "second": second.label,
            "accuracy": asdict(bootstrap_mean(_correct(first) - _correct(second), groups, **settings)),
            "judges": {},
        }
        for judge in judges:
            mine, theirs = _outcomes(first, judge), _outcomes(second, judge)
            decided = np.flatnonzero(~np.isnan(mine - theirs))
            if not len(decided):
                raise ConfigError(f"{first.label}, {second.label}: no prompt that {judge} decided for both")
            mine, theirs, asked = mine[decided], theirs[decided], [prompts[i] for i in decided]
            result = compare_scores(mine, theirs, asked, **settings)
            row["judges"][judge] = {
                "difference": asdict(bootstrap_mean(mine - theirs, asked, **settings)),
                "wins": result.wins,
                "ties": result.ties,
                "losses": result.losses,
                "sign_test_p": result.p,
            }
        found.append(row)
    for judge in judges:
        adjusted = holm([row["judges"][judge]["sign_test_p"] for row in found])
        for row, p in zip(found, adjusted, strict=True):
            row["judges"][judge]["adjusted_p"] = p
    return found


def _same_baseline(entries: Sequence[Entry]) -> bool:
    """Whether the baseline gave every run's evaluation the same answers, as equal seeds on equal hardware do."""
    answers = [[sample["baseline"]["answer"] for sample in entry.samples] for entry in entries]
    return all(other == answers[0] for other in answers[1:])


def _choice(rows: Sequence[Row], pairwise: Sequence[Row], summary: Row, judges: Sequence[str]) -> Row:
    decides = summary["judges"][judges[0]]["decides"]
    return choose(rows[1:], pairwise, judges[0], decides, rows[0])


def choose(rows: Sequence[Row], pairwise: Sequence[Row], judge: str, decides: bool, baseline: Row) -> Row:
    """The run to take, by `judge`, and why: the best one, or one that cannot be told from it and stays nearer to the
    reference (lower KL), for a difference that may be noise is not worth distance."""

    def level(row: Row) -> str:
        value = float(row["judges"][judge]["level"]["value"])
        return f"{value:.0%}" if decides else f"{value:.2f}"

    def gain(row: Row) -> Row:
        found: Row = row["judges"][judge]["difference"]
        return found

    best = max(rows, key=lambda row: row["judges"][judge]["level"]["value"])
    apart = {
        frozenset((row["first"], row["second"]))
        for row in pairwise
        if not row["judges"][judge]["difference"]["low"] <= 0 <= row["judges"][judge]["difference"]["high"]
    }
    alike = [row for row in rows if row is best or frozenset((row["label"], best["label"])) not in apart]
    if gain(best)["low"] <= 0:
        words = (points if decides else number)(gain(best))
        reason = (
            f"No run is better than the baseline by {judge} beyond noise; the best, {best['label']}, gains {words}."
        )
        return {"label": None, "alike": [row["label"] for row in alike], "reason": reason}
    taken, reason = best, f"{best['label']} is best by {judge}: {level(best)} against {level(baseline)} before"
    near = [row for row in alike if row["kl"] is not None and gain(row)["low"] > 0]
    nearest = min(near, key=lambda row: row["kl"]["value"]) if near and best["kl"] is not None else best
    if nearest is not best and nearest["kl"]["value"] < NEARER * best["kl"]["value"]:
        taken = nearest
        reason = (
            f"{nearest['label']} ({level(nearest)}) cannot be told from the best, {best['label']} ({level(best)}), by "
            f"{judge} and has {nearest['kl']['value'] / best['kl']['value']:.0%} of its KL from the reference"
        )
    others = [row["label"] for row in alike if row is not taken and row is not best]
    if others:
        reason += f"; nor can {', '.join(others)} be told from the best"
    return {"label": taken["label"], "alike": [row["label"] for row in alike], "reason": f"{reason}."}
