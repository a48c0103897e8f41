"""What a run's own figures say about it, in words, with the evidence beside each; nothing is measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dpo.config.losses import REFERENCE_FREE
from dpo.pages.tables import number, points
from dpo.pages.tables import share as in_share
from dpo.records.read import RunFiles

Row = dict[str, Any]
SIDES = ("baseline", "policy")
GOOD, NOTE, WARNING, UNKNOWN = "good", "note", "warning", "unknown"
ROUNDING = 1e-5  # a margin below it is rounding
STUCK_SHARE = 0.01
OVERFIT_RISE = 0.02
GENERALISATION_GAP = 0.15
LENGTH_CHANGE = 0.15
LARGE_KL_PER_TOKEN = 0.5
FEWEST = 20  # fewer held-out pairs, prompts or answers let nothing pass for good
SMALL_FALL = 0.05  # nats a token


@dataclass(frozen=True)
class Finding:
    """One finding: its name, how serious (good, note, warning, unknown), a sentence, and the figures behind it."""

    name: str
    level: str
    words: str
    evidence: tuple[str, ...] = ()


def findings(run: RunFiles, summary: Row | None) -> list[Finding]:
    """All findings on a run; `summary` is its evaluation's, None when it has none."""
    pairs = summary["pairs"]["pairs"] if summary else dev_pairs(run)
    prompts = summary["answers"].get("prompts") if summary else None
    measured = (summary["divergence"] or {}).get("answers") if summary else None
    return [
        reference_identity(run),
        loss_moves(run),
        _of(dev_pairs(run), "dev pairs", overfitting(run)),
        _of(pairs, "held-out pairs", displacement(run, summary)),
        *[
            _of((judged["difference"] or {}).get("n"), "prompts", noise(name, judged))
            for name, judged in (summary["judges"] if summary else {}).items()
        ],
        _of(prompts, "prompts", length_exploitation(summary)),
        _of(prompts, "prompts", truncation(summary)),
        _of(measured, "answers", movement(summary)),
    ]


def _of(count: Any, what: str, found: Finding) -> Finding:
    """A finding, but too few for a good one: what so few do not show may well be there."""
    if found.level != GOOD or not isinstance(count, int) or count >= FEWEST:
        return found
    words = f"Too few to say: {count} {what}, {FEWEST} are the least. Hold out more with dataset.test_fraction."
    if what == "dev pairs":
        words = words.replace("test_fraction", "dev_fraction")
    return Finding(found.name, UNKNOWN, words, found.evidence)


def dev_pairs(run: RunFiles) -> int | None:
    """How many dev pairs each evaluation of a run scored, where that is known."""
    kept, limit = (run.data.get("kept") or {}).get("dev"), (run.config.get("dpo") or {}).get("eval_limit")
    return None if not isinstance(kept, int) else min(kept, limit) if isinstance(limit, int) else kept


def reference_identity(run: RunFiles) -> Finding:
    """Before step 1 the policy is the reference, so every log-ratio is 0."""
    name = "Reference identity"
    if _reference_free(run):
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


def _reference_free(run: RunFiles) -> bool:
    """Whether the loss has no reference, so that logged rewards are no log-ratios."""
    return bool(REFERENCE_FREE & set((run.config.get("dpo") or {}).get("loss") or []))


def loss_moves(run: RunFiles) -> Finding:
    """A loss that never leaves its start value means nothing was learned."""
    name = "Loss leaves its start"
    train, dev = _column(run.train, "loss"), _column(run.dev, "loss")
    if len(train) < 4:
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
    if not dev or dev[-1]["step"] == 0 or len(train) < 4:
        return Finding(name, UNKNOWN, "No dev figures after step 0.")
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


def displacement(run: RunFiles, summary: Row | None) -> Finding:
    """Likelihood displacement (arXiv:2410.08847): the margin grows although the chosen answers get less likely too."""
    name = "Likelihood displacement"
    chosen, rejected = (summary["pairs"][f"{side}_log_ratio"] if summary else None for side in ("chosen", "rejected"))
    if summary and chosen and rejected:
        evidence = tuple(
            f"{side} log-ratio {e['value']:+.1f} nats [{e['low']:+.1f}, {e['high']:+.1f}] on "
            f"{summary['pairs']['pairs']} {summary['split']} pairs"
            for side, e in (("chosen", chosen), ("rejected", rejected))
        )
        chosen_falls, chosen_rises = chosen["high"] < 0, chosen["low"] > 0
        rejected_falls = rejected["high"] < 0
        tokens = summary["pairs"]["chosen_tokens"]
        small = bool(tokens) and abs(chosen["value"]) < SMALL_FALL * tokens["value"]
    elif (
        not _reference_free(run)
        and len(run.dev) > 1
        and "rewards/chosen" in run.dev[-1]
        and (run.config.get("dpo") or {}).get("beta")
    ):
        beta = float(run.config["dpo"]["beta"])
        c, r = (run.dev[-1][f"rewards/{side}"] / beta for side in ("chosen", "rejected"))
        evidence = (f"dev log-ratios at step {run.dev[-1]['step']}: chosen {c:+.1f}, rejected {r:+.1f} nats",)
        chosen_falls, chosen_rises, rejected_falls, small = c < -0.5, c > 0.5, r < -0.5, False
    else:
        return Finding(name, UNKNOWN, "No held-out log-ratios yet.")
    if chosen_falls and small:
        words = f"Chosen answers got a little less likely, by under {SMALL_FALL} nats a token; watch it in longer runs."
        return Finding(name, NOTE, words, evidence)
    if chosen_falls and rejected_falls:
        return Finding(
            name,
            WARNING,
            "Both chosen and rejected answers got less likely: the policy moves its weight to answers that are in "
            "neither. Read samples; a higher beta, fewer steps or a loss with a likelihood term helps.",
            evidence,
        )
    if chosen_falls:
        return Finding(name, WARNING, "Chosen answers got less likely.", evidence)
    if chosen_rises:
        return Finding(name, GOOD, "Chosen answers got likelier.", evidence)
    return Finding(name, GOOD, "Chosen answers kept their likelihood.", evidence)


def noise(judge: str, judged: Row) -> Finding:
    """Whether the judged difference stands out from sampling noise."""
    name = f"Difference by {judge}"
    difference = judged["difference"]
    if not difference:
        return Finding(name, UNKNOWN, "Not measured.")
    words = points(difference) if judged["decides"] else number(difference, 2, True)
    evidence = (
        f"difference {words} over {difference['n']} prompts",
        f"wins {judged['wins']}, ties {judged['ties']}, losses {judged['losses']}; sign test p = "
        f"{judged['sign_test_p']:.2g}",
    )
    if difference["low"] > 0:
        return Finding(name, GOOD, f"Better than the baseline by {judge}, beyond noise.", evidence)
    if difference["high"] < 0:
        return Finding(name, WARNING, f"Worse than the baseline by {judge}, beyond noise.", evidence)
    half = (difference["high"] - difference["low"]) / 2
    more = math.ceil(difference["n"] * (half / max(abs(difference["value"]), 1e-9)) ** 2)
    ask = f" About {more} prompts would settle a difference of this size." if 0 < more < 100_000 else ""
    return Finding(name, NOTE, f"Not distinguishable from the baseline by {judge}: this may be noise.{ask}", evidence)


def length_exploitation(summary: Row | None) -> Finding:
    """A win that does not stand once answers of equal length are compared."""
    name = "Length exploitation"
    change, before, after = (None, None, None)
    if summary:
        answers = summary["answers"]
        change, before, after = (answers["words_difference"], *(answers[side]["words"] for side in SIDES))
    if not summary or not (change and before and after):
        return Finding(name, UNKNOWN, "Not evaluated.")
    share = change["value"] / before["value"] if before["value"] else 0.0
    evidence = [
        f"words an answer: {before['value']:.1f} before, {after['value']:.1f} after ({share:+.0%}; difference "
        f"[{change['low']:+.1f}, {change['high']:+.1f}])"
    ]
    exploited = []
    for judge, judged in summary["judges"].items():
        plain, equal = judged["win_rate"], judged["length_controlled_win_rate"]
        evidence.append(f"win rate by {judge} {in_share(plain)}, at equal length {in_share(equal)}")
        if plain and equal and plain["low"] > 0.5 >= equal["low"]:
            exploited.append(judge)
    changed = abs(share) > LENGTH_CHANGE and (change["low"] > 0 or change["high"] < 0)
    longer = "longer" if share > 0 else "shorter"
    if exploited and changed:
        words = (
            f"At equal length the win by {', '.join(exploited)} does not stand out from noise: {longer} answers "
            "explain it, or much of it."
        )
        return Finding(name, WARNING, words, tuple(evidence))
    if changed:
        return Finding(name, NOTE, f"Answers became {longer}, but that does not explain the outcome.", tuple(evidence))
    return Finding(name, GOOD, "Answers kept about their length.", tuple(evidence))


def truncation(summary: Row | None) -> Finding:
    """Answers that never ended their turn."""
    name = "Cut answers"
    answers = summary["answers"] if summary else {}
    if not summary or not {"answers", *SIDES} <= answers.keys() or any("truncated" not in answers[s] for s in SIDES):
        return Finding(name, UNKNOWN, "Not evaluated.")
    total = answers["answers"]
    base, policy = (answers[side]["truncated"] / total for side in SIDES)
    limit = summary["settings"]["max_new_tokens"]
    evidence = (f"cut at {limit} tokens: {base:.0%} before, {policy:.0%} after, of {total} answers a side",)
    empty = answers["policy"].get("empty")
    if empty is not None and empty > max(1, 0.02 * total):
        return Finding(name, WARNING, f"{empty} of {total} answers of the policy are empty.", evidence)
    if policy > base + 0.05:
        return Finding(name, WARNING, "The policy ends its turn less often than the baseline.", evidence)
    if policy > 0.3:
        return Finding(name, NOTE, "Many answers are cut; raise evaluation.max_new_tokens.", evidence)
    return Finding(name, GOOD, "The policy ends its turns at least as often as the baseline.", evidence)


def movement(summary: Row | None) -> Finding:
    """How far the policy went from the reference on its own answers."""
    name = "Distance from the reference"
    found = summary["divergence"] if summary else None
    if not found or "per_token" not in found:
        return Finding(name, UNKNOWN, "KL was not measured.")
    per_token = found["per_token"]
    level = per_token["value"] if isinstance(per_token, dict) else per_token
    evidence = (
        f"KL {number(found['per_answer'])} nats an answer, {number(per_token, 3)} a token",
        f"measured on {found['answers']} answers of the policy",
    )
    if level > LARGE_KL_PER_TOKEN:
        return Finding(name, WARNING, "Far from the reference: over-optimised unless samples read well.", evidence)
    return Finding(name, GOOD, "A moderate distance.", evidence)


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
