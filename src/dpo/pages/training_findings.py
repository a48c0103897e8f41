"""What a run's training says about it: where it started, whether its loss moves, whether dev follows."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from dpo.config.losses import REFERENCE_FREE
from dpo.pages.finding import GOOD, NOTE, UNKNOWN, WARNING, Finding
from dpo.records.metrics import ROUNDING
from dpo.records.read import RunFiles

Row = dict[str, Any]
STUCK_SHARE = 0.01
OVERFIT_RISE = 0.02
GENERALISATION_GAP = 0.15
FEWEST_STEPS = 4  # logged ones


def reference_identity(run: RunFiles) -> Finding:
    """Before step 1 the policy is the reference, so every log-ratio is 0."""
    name = "Reference identity"
    if reference_free(run):
        found, expected = (run.record.get(key) for key in ("start_value", "start_value_expected"))
        if found is None or expected is None:
            return Finding("Start value", UNKNOWN, "Not recorded: the run has not come to its first step.")
        words = "No reference in this loss: it started at the value that the model's own logits give."
        return Finding("Start value", GOOD, words, (f"loss before step 1: {found:.4f}, by hand {expected:.4f}",))
    worst, bound = (run.record.get(key) for key in ("reference_identity", "reference_identity_bound"))
    if worst is None or bound is None:
        return Finding(name, UNKNOWN, "Not recorded: the run has not come to its first step.")
    evidence = [f"largest log-ratio before step 1: {worst:.2g} nats a token (rounding leaves up to {bound:.2g})"]
    start = _first(run.dev)
    if start and {"rewards/margins", "loss"} <= start.keys():
        evidence.append(f"dev at step 0: margin {_near_zero(start['rewards/margins'])}, loss {start['loss']:.4f}")
    if abs(worst) <= bound:
        return Finding(name, GOOD, "The policy started as the reference: every reward began at 0.", tuple(evidence))
    return Finding(
        name, WARNING, "The policy did not start as the reference: every figure against it is off.", tuple(evidence)
    )


def reference_free(run: RunFiles) -> bool:
    """Whether the loss has no reference, so that logged rewards are no log-ratios."""
    return bool(REFERENCE_FREE & set((run.config.get("dpo") or {}).get("loss") or []))


def loss_moves(run: RunFiles) -> Finding:
    """A loss that never leaves its start value means nothing was learned."""
    name = "Loss leaves its start"
    train, dev = _column(run.train, "loss"), _column(run.dev, "loss")
    if len(train) < FEWEST_STEPS:
        return Finding(name, UNKNOWN, "Too few logged steps to say.")
    start = _first(run.dev)
    first = start["loss"] if start and "loss" in start else train[0]
    last = dev[-1] if len(dev) > 1 else fmean(_tail(train))
    change = (last - first) / abs(first) if first else 0.0
    evidence = (f"loss at the start {first:.4f}, at the end {last:.4f} ({change:+.1%})",)
    if abs(change) < STUCK_SHARE:
        return Finding(
            name,
            WARNING,
            "The loss is stuck at its start value: raise dpo.learning_rate, train longer, or check that gradients "
            "reach the adapter.",
            evidence,
        )
    if change > 0:
        return Finding(name, WARNING, "The loss ended higher than it started: lower dpo.learning_rate.", evidence)
    return Finding(name, GOOD, "The loss fell from its start value.", evidence)


def overfitting(run: RunFiles) -> Finding:
    """Dev loss that rises again while training loss falls, or a wide gap between the two accuracies."""
    name = "Overfitting"
    dev = [row for row in run.dev if {"loss", "rewards/accuracies"} <= row.keys()]
    train = _column(run.train, "rewards/accuracies")
    if not dev or dev[-1]["step"] == 0:
        return Finding(name, UNKNOWN, "No dev figures after step 0.")
    if len(train) < FEWEST_STEPS:
        return Finding(name, UNKNOWN, "Too few logged steps to say.")
    best = min(dev, key=lambda row: row["loss"])
    last = dev[-1]
    train_accuracy = fmean(_tail(train))
    gap = train_accuracy - last["rewards/accuracies"]
    evidence = (
        f"dev loss: lowest {best['loss']:.4f} at step {best['step']}, last {last['loss']:.4f} at step {last['step']}",
        f"accuracy: {train_accuracy:.0%} on the last training pairs, {last['rewards/accuracies']:.0%} on dev",
    )
    if last["loss"] > best["loss"] * (1 + OVERFIT_RISE) and best["step"] < last["step"]:
        words = f"Dev loss rose again after step {best['step']}: fewer steps or a lower learning rate would do."
        return Finding(name, WARNING, words, evidence)
    if gap > GENERALISATION_GAP:
        return Finding(name, NOTE, "Training pairs are told apart better than dev pairs.", evidence)
    return Finding(name, GOOD, "Dev follows training.", evidence)


def _column(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def _tail(values: list[float]) -> list[float]:
    """The last fifth."""
    return values[-max(1, len(values) // 5) :]


def _near_zero(value: float) -> str:
    """A number that should be 0; rounding noise is."""
    return "0" if abs(value) < ROUNDING else f"{value:+.2g}"


def _first(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row["step"] == 0), None)
