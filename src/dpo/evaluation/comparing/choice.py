"""Which of the runs that were compared to take, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo.pages.tables import number, points, share

Row = dict[str, Any]
# A run is only preferred for being nearer to the reference when its KL is at most this share of the best one's.
NEARER = 0.8


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


def unchosen(rows: Sequence[Row], pairwise: Sequence[Row]) -> Row:
    """Where no judge that fits every run's rows ranked the answers: no run, and what the held-out pairs say."""
    best = max(rows, key=lambda row: row["accuracy"]["value"])
    others = [row for row in pairwise if best["label"] in (row["first"], row["second"])]
    alike = [row for row in others if row["accuracy"]["low"] <= 0 <= row["accuracy"]["high"]]
    ahead = "" if not others else ", told apart from none" if alike == others else ", told apart from some"
    reason = (
        f"No judge that fits the rows of every run ranked the answers, so no run is chosen. By accuracy on held-out "
        f"pairs{' the best is' if others else ':'} {best['label']}, {share(best['accuracy'])}"
        f"{ahead if alike else ', ahead of all others' if others else ''}."
    )
    return {"label": None, "alike": [row["label"] for row in rows], "reason": reason}
