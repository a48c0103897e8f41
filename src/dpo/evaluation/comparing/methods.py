"""Which method made a run, and the runs of one method with one setting under several seeds as one point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo.config.identity import settings
from dpo.records.costs import costs
from dpo.records.parents import carried, distinct, with_parents

if TYPE_CHECKING:
    from dpo.evaluation.comparing.comparison import Entry

Row = dict[str, Any]
RLHF, ROUNDS = "RLHF", "rounds of on-policy DPO"
KINDS = ("flops", "cpu_hours", "gpu_hours", "seconds", "peak_memory_mb", "watt_hours", "money")
"""Costs that shares are told of."""


@dataclass(frozen=True)
class Point:
    """Runs that differ by their seed alone. `outcomes` by prompt and sample, NaN where undecided in any run; `words` of
    the answers; costs are means over the runs, `whole` with what they were built on."""

    method: str
    how: str
    labels: tuple[str, ...]
    outcomes: np.ndarray
    words: np.ndarray
    kl: float | None
    own: Row
    whole: Row
    parents: tuple[str, ...]


def method_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """RLHF, rounds of on-policy DPO, or the name of a loss of given pairs."""
    losses = (config.get("dpo") or {}).get("loss") or []
    if losses == ["rloo"]:
        return RLHF
    if any(parent.get("what") == "pairs" for parent in carried(record)):
        return ROUNDS
    return "DPO" if losses == ["sigmoid"] else "+".join(map(str, losses)) or "unknown"


def how_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What a share must not be told without: samples a prompt or rounds, steps, and the engine."""
    dpo = config.get("dpo") or {}
    method, words = method_of(config, record), []
    if method == RLHF:
        words.append(f"RLOO, {dpo.get('samples')} samples a prompt")
    elif method == ROUNDS:
        drawn = sum(parent.get("what") == "pairs" for parent in carried(record))
        words.append(f"{drawn} round{'s' if drawn != 1 else ''}")
    steps, size = record.get("max_steps"), dpo.get("batch_size")
    if steps:
        words.append(f"{steps} steps of {size} {'prompts' if method == RLHF else 'pairs'}")
    if record.get("engine"):
        words.append(f"{record['engine']} engine")
    return ", ".join(words)


def points(entries: Sequence[Entry], judge: str) -> list[Point]:
    """The entries by method and setting, in their order."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        key = {name: value for name, value in settings(entry.run.config).items() if name != "seed"}
        # Of a later seed's reward model or rounds the folders differ, what they are does not.
        drop = ("dpo.reward", "model.adapter", "dataset.path")
        key = {name: value for name, value in key.items() if name not in drop}
        name = [method_of(entry.run.config, entry.run.record), how_of(entry.run.config, entry.run.record), key]
        alike.setdefault(json.dumps(name, sort_keys=True, default=str), []).append(entry)
    return [_point(runs, judge) for runs in alike.values()]


def _point(runs: Sequence[Entry], judge: str) -> Point:
    first = runs[0]
    own = [costs(run.run.ledger) for run in runs]
    parents = [carried(run.run.record) for run in runs]
    divergences = [(run.summary["divergence"] or {}).get("per_answer") for run in runs]
    kls = [found["value"] for found in divergences if found]
    return Point(
        method_of(first.run.config, first.run.record),
        how_of(first.run.config, first.run.record),
        tuple(run.label for run in runs),
        np.mean([_column(run, lambda sample: sample["verdicts"][judge].get("outcome")) for run in runs], axis=0),
        np.mean([_column(run, lambda sample: len(sample["answer"].split())) for run in runs], axis=0),
        float(np.mean(kls)) if len(kls) == len(runs) else None,
        _mean(own),
        _mean([with_parents(cost, rows) for cost, rows in zip(own, parents, strict=True)]),
        tuple(str(row.get("what")) for row in distinct(parents[0])),
    )


def _column(entry: Entry, value: Any) -> np.ndarray:
    return np.array([value(sample["policy"]) for sample in entry.samples], dtype=np.float64)


def _mean(rows: Sequence[Row]) -> Row:
    found: Row = {}
    for key in KINDS:
        values = [row.get(key) for row in rows]
        known = [value for value in values if value is not None]
        found[key] = float(np.mean(known)) if known and len(known) == len(rows) else None
    return found
