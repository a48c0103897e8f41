"""What a run says of its data: the lines `dpo.train` prints, of which `dpo.prepare` shows the whole."""

from __future__ import annotations

import math
from typing import Any

from dpo.errors import DataError

# Said of every dataset in which a question is asked twice: nothing to act on.
ENOUGH = 50
"""Pairs that let a share be told to 14 points up or down; fewer are worth a line."""
QUIET = ("prompt seen before",)


def remarks(report: dict[str, Any]) -> list[str]:
    """Lines on a report (data.json): rows refused, what was noted or cut, and warnings."""
    lines = []
    for what, key in (("refused", "refused"), ("noted", "noted")):
        found = {name: one["count"] for name, one in report[key].items() if one["count"] and name not in QUIET}
        if found:
            lines.append(f"{what}: {', '.join(f'{count} {name}' for name, count in found.items())} (ids in data.json)")
    return [*lines, *cuts(report), *report["warnings"], *few_held_out(report)]


def few_held_out(report: dict[str, Any]) -> list[str]:
    """A line for each held-out split that is empty or too small to compare by, with how to hold out more."""
    kept = report["kept"]
    # What brings a split to ENOUGH pairs, at most a third of all.
    share = min(0.33, math.ceil(100 * ENOUGH / max(1, sum(kept.values()))) / 100)
    lines = []
    for split, lacking in (("dev", "nothing shows overfitting"), ("test", "nothing can be evaluated")):
        count, more = kept[split], f"dataset.{split}_fraction={share:g} holds out more"
        if count == 0:
            lines.append(f"no {split} pairs, so {lacking}; {more}")
        elif count < ENOUGH:
            half = 100 * min(0.5, 0.98 / math.sqrt(count))
            pairs = f"{split} pair" if count == 1 else f"{split} pairs"
            lines.append(f"only {count} {pairs}: shares of them are known to {half:.0f} points up or down; {more}")
    return lines


def cuts(report: dict[str, Any]) -> list[str]:
    """What was cut to fit `dataset.max_length`, in a line; no line where nothing was."""
    found = [
        f"{name} {cut['tokens']} tokens in {cut['pairs']} pairs"
        for name, cut in report["truncation"].items()
        if cut["pairs"]
    ]
    return [f"cut to fit {report['max_length']} tokens: {', '.join(found)}"] if found else []


def check_positions(report: dict[str, Any], positions: int | None, steady: int | None, model: str) -> str | None:
    """None, or a line where `dataset.max_length` is more than a model's positions; DataError where a pair is longer, or
    longer than the tokens up to which positions are `steady`."""
    most, longest = report["max_length"], report["longest"]
    if steady is not None and longest > steady:
        raise DataError(
            f"dataset.max_length={most}: the longest pair has {longest} tokens; beyond {steady} the positions of "
            f"{model} change with the longest sequence of a batch, and with them every figure\n"
            f"set dataset.max_length={steady}, which cuts longer pairs"
        )
    if positions is None or most <= positions:
        return None
    if longest > positions:
        raise DataError(
            f"dataset.max_length={most}: the longest pair has {longest} tokens, {model} was made for {positions}\n"
            f"set dataset.max_length={positions}, which cuts longer pairs, or take a model of more positions"
        )
    return f"dataset.max_length={most} is more than the {positions} positions of {model}; no pair is longer"
