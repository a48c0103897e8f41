"""What a run's evaluation says about it: likelihoods, judges, lengths, endings, distance."""

from __future__ import annotations

import math
from typing import Any

from dpo.pages.finding import GOOD, NOTE, UNKNOWN, WARNING, Finding
from dpo.pages.tables import counted, number, points
from dpo.pages.tables import share as in_share
from dpo.pages.training_findings import reference_free
from dpo.records.judged import DECIDE, RULES, UNFIT
from dpo.records.read import RunFiles

Row = dict[str, Any]
SIDES = ("baseline", "policy")
LENGTH_CHANGE = 0.15
LARGE_KL_PER_TOKEN = 0.5
SMALL_FALL = 0.05  # nats a token


def displacement(run: RunFiles, summary: Row | None) -> Finding:
    """Likelihood displacement (arXiv:2410.08847): the margin grows although the chosen answers get less likely too."""
    name = "Likelihood displacement"
    chosen, rejected = (summary["pairs"][f"{side}_log_ratio"] if summary else None for side in ("chosen", "rejected"))
    if summary and chosen and rejected:
        over = counted(summary["pairs"]["pairs"], f"{summary['split']} pair")
        evidence = tuple(
            f"{side} log-ratio {number(e, 1, True)} nats on {over}"
            for side, e in (("chosen", chosen), ("rejected", rejected))
        )
        chosen_falls, chosen_rises = chosen["high"] < 0, chosen["low"] > 0
        rejected_falls = rejected["high"] < 0
        tokens = summary["pairs"]["chosen_tokens"]
        small = bool(tokens) and abs(chosen["value"]) < SMALL_FALL * tokens["value"]
    elif (
        not reference_free(run)
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


def undecided(summary: Row) -> str:
    """What is to be said where no judge that fits the rows ranked the answers."""
    unfit = f" Judge {RULES} does not count: {UNFIT}" if RULES in summary["judges"] else ""
    return f"No judge that fits these rows ranked the answers; {', '.join(DECIDE)} could.{unfit}"


def noise(judge: str, judged: Row) -> Finding:
    """Whether the judged difference stands out from sampling noise."""
    name = f"Difference by {judge}"
    difference = judged["difference"]
    if not difference:
        return Finding(name, UNKNOWN, "Not measured.")
    words = points(difference) if judged["decides"] else number(difference, 2, True)
    evidence = (
        f"difference {words} over {counted(difference['n'], 'prompt')}",
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
        explained = ", but that does not explain the outcome" if summary["judges"] else ""
        return Finding(name, NOTE, f"Answers became {longer}{explained}.", tuple(evidence))
    return Finding(name, GOOD, "Answers kept about their length.", tuple(evidence))


def truncation(summary: Row | None) -> Finding:
    """Answers that never ended their turn."""
    name = "Cut answers"
    answers = summary["answers"] if summary else {}
    if not summary or not {"answers", *SIDES} <= answers.keys() or any("truncated" not in answers[s] for s in SIDES):
        return Finding(name, UNKNOWN, "Not evaluated.")
    if not (total := answers["answers"]):
        return Finding(name, UNKNOWN, "No answers were drawn.")
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
        f"measured on {counted(found['answers'], 'answer')} of the policy",
    )
    if level > LARGE_KL_PER_TOKEN:
        return Finding(name, WARNING, "Far from the reference: over-optimised unless samples read well.", evidence)
    return Finding(name, GOOD, "A moderate distance.", evidence)
