"""The figures of an evaluation before and after, as rows of words: for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dpo.pages import reward
from dpo.pages.tables import counted, number, percent, points, share

Row = dict[str, Any]
COLUMNS = ("", "before", "after", "difference")
EQUAL_LENGTH = (
    "win rate at equal length: logistic regression of the outcome (win 1, tie 0.5, loss 0) on tanh(difference in words "
    "/ its standard deviation), read where the difference is 0 (Dubois et al. 2024, arXiv:2404.04475, without the term "
    "for the prompt)."
)
SIDES = ("baseline", "policy")
INDENT = "  "  # before a figure that goes with the one above it


def figure_rows(summary: Row) -> list[list[str]]:
    """Label, before, after and difference of every figure; differences and shares carry their intervals."""
    pairs, answers = summary["pairs"], summary["answers"]
    base, policy = answers["baseline"], answers["policy"]
    if summary["reward_model"]:
        return reward.rows(pairs)
    rows = [
        [
            "implicit-reward accuracy",
            "50% (ties)",
            share(pairs["accuracy"]),
            points(pairs["accuracy_gain"]),
        ],
        [f"{INDENT}{reward.NOT_SHORTER}", "50% (ties)", share(pairs["accuracy_not_shorter"]), ""],
        [f"{INDENT}per token of the answers", "50% (ties)", share(pairs["accuracy_per_token"]), ""],
        [
            "chosen likelier than rejected",
            share(pairs["likelier_before"]),
            share(pairs["likelier"]),
            points(pairs["likelier_gain"]),
        ],
        ["reward margin (beta x nats)", "0", number(pairs["margin"]), ""],
        [f"{INDENT}per token", "0", number(pairs["margin_per_token"], 3), ""],
        ["chosen log-ratio (nats)", "0", number(pairs["chosen_log_ratio"], 1, True), ""],
        [f"{INDENT}per token", "0", number(pairs["chosen_log_ratio_per_token"], 2, True), ""],
        ["rejected log-ratio (nats)", "0", number(pairs["rejected_log_ratio"], 1, True), ""],
        [f"{INDENT}per token", "0", number(pairs["rejected_log_ratio_per_token"], 2, True), ""],
        ["calibration error", "", number(pairs["calibration_error"]), ""],
    ]
    for part, found in (summary.get("parts") or {}).items():
        of_part = found["pairs"]
        label = f"implicit-reward accuracy on {part}"
        rows.append([label, "50% (ties)", share(of_part["accuracy"]), points(of_part["accuracy_gain"])])
        rows.append([f"{INDENT}reward margin, {of_part['pairs']} pairs", "0", number(of_part["margin"]), ""])
    for name, judged in summary["judges"].items():
        level, change = (share, points) if judged["decides"] else (number, _signed)
        rows.append([judged["label"], level(judged["baseline"]), level(judged["policy"]), change(judged["difference"])])
        rows.append(
            [
                f"{INDENT}wins / ties / losses by {name}",
                "",
                f"{judged['wins']} / {judged['ties']} / {judged['losses']}",
                f"sign test p = {judged['sign_test_p']:.2g}",
            ]
        )
        rows.append([f"{INDENT}win rate at equal length", "", share(judged["length_controlled_win_rate"]), ""])
    for found in summary["figures"].values():
        rows += [_further(row) for row in found["rows"] if not nothing(row.get(side) for side in SIDES)]
        if names := nothing_of(found["rows"], lambda row: [row.get(side) for side in SIDES]):
            rows.append([names, "0", "0", "0"])
    rows += [
        [
            "answer length (words)",
            number(base["words"], 1),
            number(policy["words"], 1),
            number(answers["words_difference"], 1, True),
        ],
        [
            "answers cut at the token limit",
            f"{base['truncated']} of {answers['answers']}",
            f"{policy['truncated']} of {answers['answers']}",
            "",
        ],
    ]
    if summary["divergence"]:
        rows += [
            ["KL from the reference (nats an answer)", "0", number(summary["divergence"]["per_answer"]), ""],
            [f"{INDENT}per token", "0", number(summary["divergence"]["per_token"], 3), ""],
        ]
    return rows


def _further(row: Row) -> list[str]:
    level, change = (share, points) if row["share"] else (number, _signed)
    baseline = level(row["baseline"]) if "baseline" in row else ""
    return [row["label"], baseline, level(row["policy"]), change(row["difference"]) if "difference" in row else ""]


def nothing(estimates: Iterable[Row | None]) -> bool:
    """Whether each estimate is 0 and sure of it: what never occurred."""
    return all(e is not None and e["value"] == e["low"] == e["high"] == 0 for e in estimates)


def nothing_of(rows: Iterable[Row], estimates: Callable[[Row], Iterable[Row | None]]) -> str:
    """The labels of the figures that never occurred, in one: a row each would say nothing."""
    return ", ".join(row["label"] for row in rows if nothing(estimates(row)) and not row["label"].startswith(INDENT))


def judged_rows(judged: Row) -> list[list[str]]:
    """Label and value of each figure of one judge over one set of answers."""
    return [[row["label"], (share if row["share"] else number)(row["policy"])] for row in judged["figures"]]


def judged_lines(judged: Row, confidence: float) -> list[str]:
    """What the figures of `judged_rows` mean, what failed most, what is undecided, what it cost."""
    lines = [judged["definition"]]
    if judged["failed"]:
        worst = ", ".join(f"{name} {count}" for name, count in list(judged["failed"].items())[:8])
        lines.append(f"failed most: {worst}")
    if judged["undecided"]:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in judged["undecided"].items())
        lines.append(f"undecided and left out: {reasons}")
    if judged["cost"]:
        lines.append(f"cost {judged['cost']:.4f}")
    return [*lines, f"[low, high]: {percent(confidence)} intervals, bootstrap over prompts, Wilson for shares"]


def caption(summary: Row) -> str:
    """What was held out and asked."""
    pairs, answers = summary["pairs"], summary["answers"]
    held = counted(pairs["pairs"], "held-out pair")
    if summary["reward_model"]:
        return f"{summary['split']}: {held}; a reward model, which writes no answers"
    return f"{summary['split']}: {held}, {counted(answers['prompts'], 'prompt')} answered by each side"


def notes(summary: Row) -> list[str]:
    """What the figures mean: the judges' definitions, the intervals, accuracy before and after, the sampling."""
    judges, settings = {**summary["judges"], **summary["figures"]}, summary["settings"]
    if summary["reward_model"]:
        return reward.notes(settings["confidence"])
    lines = [f"judge {name}: {judged['definition']}" for name, judged in judges.items()]
    for name, missing in summary["undecided"].items():
        reasons = "; ".join(f"{reason} ({count})" for reason, count in missing["reasons"].items())
        lines.append(f"judge {name}: {missing['count']} of {missing['of']} undecided and left out: {reasons}")
    lines += [
        f"[low, high]: {percent(settings['confidence'])} intervals, bootstrap over prompts (Wilson for shares of "
        "answers).",
        "implicit-reward accuracy: pairs whose chosen answer gained more log-probability over the base than the "
        "rejected one; for the base itself every pair is a tie."
        if summary["pairs"]["likelier"] is not None
        else "implicit-reward accuracy: wanted answers that gained log-probability over the base, and unwanted ones "
        "that lost; for the base itself every answer is a tie.",
    ]
    if summary["judges"]:
        lines.append(EQUAL_LENGTH)
    if settings["temperature"]:
        lines.append(
            f"answers: temperature {settings['temperature']}, top {settings['top_k']}, at most "
            f"{settings['max_new_tokens']} tokens; both sides with the same random numbers."
        )
    return lines


def _signed(estimate: Row) -> str:
    return number(estimate, 2, True)
