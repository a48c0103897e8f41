"""Runs against the unaligned baseline and against each other, on the same prompts. Reads what `evaluate` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dpo.errors import ConfigError
from dpo.evaluation.comparing.choice import choose, unchosen
from dpo.evaluation.comparing.difference import caution, what_differs
from dpo.evaluation.comparing.shares import shares
from dpo.records.costs import costs
from dpo.records.judged import fitting
from dpo.records.parents import carried, with_parents
from dpo.records.read import RunFiles, read_pairs, read_run, read_samples, read_summary
from dpo.statistics.intervals import bootstrap_mean, bootstrap_share, compare_scores, holm

Row = dict[str, Any]
BASELINE = "baseline"
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
        for entry in (first, other):
            if key not in entry.summary:
                raise ConfigError(
                    f"{entry.label}: its evaluation does not say on which {words}, so it can be compared with nothing\n"
                    f"python -m dpo.evaluate {entry.run.folder} evaluation.name={entry.summary['name']}"
                )
        if first.summary[key] != other.summary[key]:
            raise ConfigError(
                f"{other.label}: other {words} than {first.label}: {other.summary[key]} against {first.summary[key]}\n"
                "only runs of one base, evaluated on the same held-out set, can be compared"
            )
    for key in SHARED_SETTINGS:
        mine, theirs = (entry.summary["settings"][key] for entry in (other, first))
        if mine != theirs:
            raise ConfigError(
                f"{other.label}: evaluated with {key}={mine}, {first.label} with {theirs}\n"
                f"evaluate both the same way under a new name: evaluation.name=NEW evaluation.{key}={theirs}"
            )


def differing(first: Entry, other: Entry) -> list[str]:
    """What two evaluations do not share, in words."""
    words = [words for key, words in SHARED if first.summary.get(key) != other.summary.get(key)]
    mine, theirs = first.summary["settings"], other.summary["settings"]
    return words + [key for key in SHARED_SETTINGS if mine.get(key) != theirs.get(key)]


def compare(entries: Sequence[Entry], resamples: int, confidence: float, seed: int) -> Row:
    """The comparison as plain data: a row a run (the baseline first), every two runs against each other, a choice.

    Pairwise p-values are sign tests adjusted by Holm over all pairs of one judge.
    """
    settings: Row = {"resamples": resamples, "confidence": confidence, "seed": seed}
    judges = [
        name
        for name in entries[0].summary["judges"]
        if all({"policy", BASELINE, "difference"} <= entry.summary["judges"][name].keys() for entry in entries)
    ]
    further = _further(entries)
    rows = [_baseline_row(entries, judges, further), *(_run_row(entry, judges, further) for entry in entries)]
    pairwise = _pairwise(entries, judges, settings)
    configs = [entry.run.config for entry in entries]
    first = next(iter(fitting(judges, *configs)), None)
    differs = what_differs(configs)
    return {
        "evaluation": entries[0].summary["name"],
        "shared": {key: entries[0].summary[key] for key, _ in SHARED},
        "settings": settings | {key: entries[0].summary["settings"].get(key) for key in SHARED_SETTINGS},
        "judges": {
            name: {key: entries[0].summary["judges"][name].get(key) for key in ("label", "definition", "decides")}
            for name in judges
        },
        "differs": differs,
        "caution": caution(differs),
        "figures": further,
        "same_baseline_answers": _same_baseline(entries),
        "rows": rows,
        "pairwise": pairwise,
        "methods": shares(entries, first, **settings) if first and _decides(entries[0], first) else None,
        "judge": first,
        "choice": choose(rows[1:], pairwise, first, _decides(entries[0], first), rows[0])
        if first
        else unchosen(rows[1:], pairwise),
    }


def _decides(entry: Entry, judge: str) -> bool:
    return bool(entry.summary["judges"][judge]["decides"])


def _further(entries: Sequence[Entry]) -> Row:
    """What judges measured besides their verdict, in any of the runs: by judge, its definition and figures by key."""
    found: Row = {}
    for entry in entries:
        for name, measured in entry.summary["figures"].items():
            judge = found.setdefault(name, {"definition": str(measured["definition"]), "figures": {}})
            for row in measured["rows"]:
                judge["figures"].setdefault(row["key"], {"label": str(row["label"]), "share": bool(row["share"])})
    return found


def _figures(summary: Row, further: Row, **wanted: str) -> Row:
    """By judge and key, parts of the summary's figures (`wanted`: name here, name there); None where not measured."""
    found: Row = {}
    for name, judge in further.items():
        rows = {row["key"]: row for row in summary["figures"][name]["rows"]}
        found[name] = {
            key: {to: rows.get(key, {}).get(part) for to, part in wanted.items()} for key in judge["figures"]
        }
    return found


def _baseline_row(entries: Sequence[Entry], judges: Sequence[str], further: Row) -> Row:
    summary = entries[0].summary
    have = {name: next(e.summary for e in entries if name in e.summary["figures"]) for name in further}
    return {
        "label": BASELINE,
        "accuracy": None,  # all its implicit rewards are 0
        "kl": None,
        "margin": None,
        "words": summary["answers"]["baseline"]["words"] or None,
        "truncated": _cut(summary, "baseline"),
        "judges": {name: {"level": summary["judges"][name]["baseline"]} for name in judges},
        "figures": {name: _figures(have[name], {name: further[name]}, level=BASELINE)[name] for name in further},
        "cost": None,
    }


def _cut(summary: Row, side: str) -> float | None:
    """Share of answers cut at the limit."""
    cut, total = summary["answers"][side].get("truncated"), summary["answers"].get("answers")
    return None if cut is None or not total else cut / total


def _run_row(entry: Entry, judges: Sequence[str], further: Row) -> Row:
    pairs, answers, ledger = entry.summary["pairs"], entry.summary["answers"], entry.run.ledger
    divergence = entry.summary["divergence"]
    measured = ("accuracy", "accuracy_gain", "margin", "chosen_log_ratio", "rejected_log_ratio")
    own, parents = costs(ledger), carried(entry.run.record)
    return {
        "label": entry.label,
        "folder": str(entry.run.folder),
        "state": entry.run.state,
        **{key: pairs[key] or None for key in measured},
        "kl": (divergence["per_answer"] or None) if divergence else None,
        "words": answers["policy"]["words"] or None,
        "words_difference": answers["words_difference"] or None,
        "truncated": _cut(entry.summary, "policy"),
        "judges": {name: _judged(entry.summary["judges"][name]) for name in judges},
        "figures": _figures(entry.summary, further, level="policy", difference="difference"),
        "cost": {
            **own,
            "parents": [{key: parent.get(key) for key in ("what", "folder")} for parent in parents],
            "with_parents": with_parents(own, parents),
            "attempts": len(entry.run.record.get("attempts") or []),
            "unfinished_attempts": sum(
                attempt.get("status") != "complete" for attempt in entry.run.record.get("attempts") or []
            ),
        },
    }


def _judged(judged: Row) -> Row:
    kept = ("difference", "wins", "ties", "losses", "win_rate", "length_controlled_win_rate", "sign_test_p")
    return {"level": judged["policy"] or None, **{key: judged.get(key) for key in kept}}


def _outcomes(entry: Entry, judge: str) -> np.ndarray:
    """The policy's outcome on each sample, NaN where it is undecided."""
    return np.array([sample["policy"]["verdicts"][judge].get("outcome") for sample in entry.samples], dtype=np.float64)


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
            "accuracy": asdict(bootstrap_share(_correct(first) - _correct(second), groups, **settings, bounds=(-1, 1))),
            "judges": {},
        }
        for judge in judges:
            difference = partial(bootstrap_share, bounds=(-1, 1)) if _decides(first, judge) else bootstrap_mean
            mine, theirs = _outcomes(first, judge), _outcomes(second, judge)
            decided = np.flatnonzero(~np.isnan(mine - theirs))
            if not len(decided):
                raise ConfigError(f"{first.label}, {second.label}: no prompt that {judge} decided for both")
            mine, theirs, asked = mine[decided], theirs[decided], [prompts[i] for i in decided]
            result = compare_scores(mine, theirs, asked, **settings)
            row["judges"][judge] = {
                "difference": asdict(difference(mine - theirs, asked, **settings)),
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
