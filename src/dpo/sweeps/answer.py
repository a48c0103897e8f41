"""What a sweep found: figures of each setting over its seeds, every setting against the best, and which one to take.

Reads what the jobs' evaluations wrote. Only jobs that completed and were evaluated take part; the others are listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpo.data.words import word_count
from dpo.errors import ConfigError
from dpo.evaluation.comparing.comparison import Entry, check_comparable, differing
from dpo.records.costs import costs
from dpo.records.judged import fitting
from dpo.records.read import read_pairs, read_rows, read_samples
from dpo.statistics.intervals import Floats, wilson
from dpo.statistics.paired import over_seeds, seeds_and_items
from dpo.sweeps.choice import ACCURACY, Criterion, choose_by_dev, choose_setting
from dpo.sweeps.files import JobFiles, SweepFiles, label_of, spanning

Row = dict[str, Any]
SEED = "seed"
CONFIDENCE, RESAMPLES, SHARE = 0.95, 4000, (0.0, 1.0)
FEWEST_SEEDS = 3  # fewer have a mean and no interval


@dataclass(frozen=True)
class Setting:
    """Jobs that differ in their seed alone, with their rows in one fixed order."""

    label: str
    values: Row
    entries: list[Entry]

    def matrix(self, rows: Sequence[Sequence[float]]) -> Floats:
        """(seeds, items)."""
        return np.array(rows, dtype=np.float64)

    def correct(self) -> Floats:
        """(seeds, pairs): 1 where the chosen answer gained more over the reference than the rejected one, 0.5 equal."""
        return self.matrix([[_gained(row) for row in entry.pairs] for entry in self.entries])

    def judged(self, judge: str, side: str, decided: Sequence[int]) -> Floats:
        """(seeds, answers): a judge's outcome of a side's answers, those in `decided`."""
        return self.matrix([[_outcome(entry.samples[i], judge, side) for i in decided] for entry in self.entries])

    def kl(self, prompts: Sequence[str]) -> Floats | None:
        """(seeds, prompts): nats of KL from the reference on the policy's own answers; None where not measured."""
        rows = [_divergence(entry) for entry in self.entries]
        return self.matrix([[row[prompt] for prompt in prompts] for row in rows]) if prompts else None

    def words(self) -> Floats:
        """(seeds, answers): words an answer."""
        return self.matrix([[word_count(s["policy"]["answer"]) for s in entry.samples] for entry in self.entries])


def _divergence(entry: Entry) -> dict[str, float]:
    rows = read_rows(entry.run.folder, entry.summary["name"], "divergence")
    return {row["prompt"]: float(row["kl"]) for row in rows}


def _outcome(sample: Row, judge: str, side: str) -> Any:
    """None where undecided."""
    return sample[side]["verdicts"].get(judge, {}).get("outcome")


def _decided(entries: Sequence[Entry], judge: str) -> list[int]:
    """Answers that the judge decided for both sides of every job: what can be compared answer by answer."""
    return [
        i
        for i in range(len(entries[0].samples))
        if all(_outcome(e.samples[i], judge, side) is not None for e in entries for side in ("policy", "baseline"))
    ]


def _gained(row: Row) -> float:
    chosen = row["policy_chosen"] - row["reference_chosen"]
    rejected = row["policy_rejected"] - row["reference_rejected"]
    return float(chosen > rejected) + 0.5 * float(chosen == rejected)


def answer(sweep: SweepFiles) -> Row:
    """The sweep as plain data: jobs, settings, choice, and on what that rests (`basis`)."""
    axes = [key for key in spanning(sweep.keys, [job.values for job in sweep.jobs]) if key != SEED]
    found: Row = {
        "folder": str(sweep.folder),
        "keys": sweep.keys,
        "axes": axes,
        "evaluation": sweep.evaluation,
        "confidence": CONFIDENCE,
        "jobs": [_job(job) for job in sweep.jobs],
        "judges": {},
    }
    ready = [job for job in sweep.jobs if job.complete and job.summary]
    if not ready:
        return found | _from_dev(sweep, axes)
    entries = [_entry(job) for job in ready]
    groups = _comparable(entries)
    parts = [_measured([ready[i] for i in group], [entries[i] for i in group], axes) for group in groups]
    return found | (parts[0] if len(parts) == 1 else _apart(parts, [entries[group[0]] for group in groups]))


def _comparable(entries: Sequence[Entry]) -> list[list[int]]:
    """Positions of entries that measured the same thing in the same way, group by group."""
    groups: list[list[int]] = []
    for i, entry in enumerate(entries):
        for group in groups:
            try:
                check_comparable(entries[group[0]], entry)
            except ConfigError:
                continue
            group.append(i)
            break
        else:
            groups.append([i])
    return groups


def _apart(parts: Sequence[Row], first: Sequence[Entry]) -> Row:
    """The answer where jobs measured different things: each group has its own, and none is over all of them."""
    keys = dict.fromkeys(key for entry in first[1:] for key in differing(first[0], entry))
    shared = set.intersection(*(set(part["judges"]) for part in parts))
    told = [f"{'; '.join(part['labels'])}: {part['choice']['reason']}" for part in parts]
    reason = (
        f"No recommendation over all jobs: they have different {' and '.join(keys)}, so only jobs that share them "
        f"are compared, in {len(parts)} groups, each with what it started from. {' '.join(told)}"
    )
    return {
        "settings": [row for part in parts for row in part["settings"]],
        "judges": {name: judge for name, judge in parts[0]["judges"].items() if name in shared},
        "basis": "evaluation",
        "groups": [{key: part[key] for key in ("labels", "held_out", "choice")} for part in parts],
        "choice": {"label": None, "by": None, "best": None, "alike": [], "against_best": [], "reason": reason},
    }


def _measured(ready: Sequence[JobFiles], entries: Sequence[Entry], axes: Sequence[str]) -> Row:
    """Settings and choice of jobs that were measured on the same held-out pairs and prompts."""
    found: Row = {}
    settings = _settings(ready, entries, axes)
    summary, configs = entries[0].summary, [entry.run.config for entry in entries]
    decided = {name: _decided(entries, name) for name in fitting(summary["judges"], *configs)}
    found["judges"] = {
        name: {key: judged[key] for key in ("label", "definition", "decides")} | {"answers": len(decided[name])}
        for name, judged in summary["judges"].items()
        if decided.get(name)
    }
    groups = [row["group"] for row in entries[0].pairs]
    prompts = [sample["prompt"] for sample in entries[0].samples]
    criteria = [
        Criterion(name, judge["decides"], [s.judged(name, "policy", decided[name]) for s in settings],
                  [s.judged(name, "baseline", decided[name]) for s in settings], [prompts[i] for i in decided[name]])
        for name, judge in found["judges"].items()
    ]  # fmt: skip
    correct = [s.correct() for s in settings]
    criteria.append(Criterion(ACCURACY, True, correct, [np.full_like(c, 0.5) for c in correct], groups))
    # An empty answer has no KL: what is compared are the prompts every job has one for.
    measured = sorted(set.intersection(*(set(_divergence(entry)) for entry in entries)))
    kl = [s.kl(measured) for s in settings]
    kept = {name: decided[name] for name in found["judges"]}
    figures = [_figures(s, kept, groups, prompts, k) for s, k in zip(settings, kl, strict=True)]
    choice = choose_setting([s.label for s in settings], criteria, kl, CONFIDENCE, RESAMPLES)
    held = summary["pairs"]["pairs"], summary["answers"]["prompts"], summary["split"]
    return found | {
        "settings": figures,
        "labels": [s.label for s in settings],
        "basis": "evaluation",
        "left_out": [name for name in summary["judges"] if name not in decided],
        "held_out": {"pairs": held[0], "prompts": held[1], "split": held[2]},
        "choice": choice,
    }


def _entry(job: JobFiles) -> Entry:
    assert job.run is not None
    assert job.summary is not None
    name = job.summary["name"]
    samples = sorted(read_samples(job.folder, name), key=lambda row: (row["prompt"], row["sample"]))
    pairs = sorted(read_pairs(job.folder, name), key=lambda row: row["id"])
    return Entry(job.label, job.run, job.summary, samples, pairs)


def _settings(jobs: Sequence[JobFiles], entries: Sequence[Entry], axes: Sequence[str]) -> list[Setting]:
    found: dict[str, Setting] = {}
    for job, entry in zip(jobs, entries, strict=True):
        values = {key: value for key, value in job.values.items() if key != SEED}
        label = label_of({key: values[key] for key in axes}) or "all seeds"
        found.setdefault(label, Setting(label, values, [])).entries.append(entry)
    return list(found.values())


def _figures(
    setting: Setting, judged: dict[str, list[int]], groups: Sequence[str], prompts: Sequence[str], kl: Floats | None
) -> Row:
    def estimate(values: Floats, of: Sequence[Any], bounds: tuple[float, float] | None = None) -> Row:
        return asdict(seeds_and_items(values, of, RESAMPLES, CONFIDENCE, 0, bounds))

    judges: Row = {}
    for name, decided in judged.items():
        policy, base = setting.judged(name, "policy", decided), setting.judged(name, "baseline", decided)
        asked = [prompts[i] for i in decided]
        decides = setting.entries[0].summary["judges"][name]["decides"]
        judges[name] = {
            "level": estimate(policy, asked, SHARE if decides else None),
            "baseline": estimate(base, asked, SHARE if decides else None),
            "gain": estimate(policy - base, asked, (-1.0, 1.0) if decides else None),
            "win_rate": estimate((1 + np.sign(policy - base)) / 2, asked, SHARE),
        }
    spent = [costs(entry.run.ledger) for entry in setting.entries]
    correct = setting.correct()
    return {
        "label": setting.label,
        "values": setting.values,
        "seeds": len(setting.entries),
        "accuracy": estimate(correct, groups, SHARE),
        "judges": judges,
        "kl": None if kl is None else estimate(kl, range(kl.shape[1])),
        "words": estimate(setting.words(), prompts),
        "seconds": float(np.mean([cost["seconds"] or 0.0 for cost in spent])),
        "money": float(np.mean([cost["money"] or 0.0 for cost in spent])),
        "over_seeds": _over_seeds(setting, judged) if len(setting.entries) > 1 else None,
    }


def _over_seeds(setting: Setting, judged: dict[str, list[int]]) -> Row:
    """How far the figures move with the seed alone: mean and t interval over seeds, of two seeds only the mean."""
    found = {"accuracy": _mean(setting.correct().mean(1), share=True)}
    for name, decided in judged.items():
        levels = setting.judged(name, "policy", decided).mean(1)
        found[name] = _mean(levels, share=bool(setting.entries[0].summary["judges"][name]["decides"]))
    return found


def _mean(values: Floats, share: bool) -> Row:
    found = asdict(over_seeds(list(values)))
    if len(values) < FEWEST_SEEDS:
        # On one degree of freedom the interval is twelve standard errors to each side: it says nothing.
        return found | {"low": None, "high": None}
    return found | {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])} if share else found


def _job(job: JobFiles) -> Row:
    """One line of the table of all jobs; figures only of jobs that completed."""
    summary, run = job.summary if job.complete else None, job.run
    cost = costs(run.ledger if run else {})
    return {
        "label": job.label,
        "values": job.values,
        "folder": str(job.folder),
        "state": job.state,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "step": run.record.get("step") if run else None,
        "max_steps": run.record.get("max_steps") if run else None,
        "dev": dev_accuracy(job),
        "accuracy": summary["pairs"]["accuracy"] if summary else None,
        "margin": summary["pairs"]["margin"] if summary else None,
        "kl": summary["divergence"]["per_answer"] if summary and summary["divergence"] else None,
        "words": summary["answers"]["policy"]["words"] if summary else None,
        "judges": {
            name: {"level": judged["policy"], "win_rate": judged["win_rate"], "gain": judged["difference"]}
            for name, judged in (summary["judges"] if summary else {}).items()
        },
        "seconds": cost["seconds"],
        "gpu_hours": cost["gpu_hours"] or 0.0,
        "money": cost["money"],
        "attempts": len(run.record.get("attempts") or []) if run else 0,
    }


def dev_accuracy(job: JobFiles) -> Row | None:
    """Reward accuracy on the dev pairs a job looked at after its last step, with Wilson's interval."""
    if job.run is None or not job.run.dev:
        return None
    last = job.run.dev[-1]
    pairs = (job.run.data.get("kept") or {}).get("dev") or 0
    limit = (job.run.config.get("dpo") or {}).get("eval_limit")
    n = pairs if limit is None else min(pairs, limit)
    share = last.get("rewards/accuracies")
    if share is None or not n or not math.isfinite(share):
        return None
    return asdict(wilson(round(share * n), n, CONFIDENCE)) | {"step": last["step"]}


def _from_dev(sweep: SweepFiles, axes: list[str]) -> Row:
    """Without a single evaluation: the dev metrics of training, which give no pairing, no answers and no KL."""
    settings = []
    for job in sweep.jobs:
        trained = job.run is not None and job.run.state == "complete"
        accuracy = dev_accuracy(job) if trained else None
        if accuracy is not None:
            settings.append({"label": job.label, "values": job.values, "seeds": 1, "accuracy": accuracy, "judges": {},
                             "kl": None, "words": None, "seconds": costs(job.run.ledger if job.run else {})["seconds"],
                             "money": 0.0, "over_seeds": None})  # fmt: skip
    return {"settings": settings, "basis": "dev", "choice": choose_by_dev(settings)}
