"""Which setting of a sweep to take, and why, in words. A difference that may be noise is not worth distance.

The best of several settings was picked for its figure, which is therefore too high on average, and its own interval
would promise too much. So nothing rests on the figure: each claim rests on one end of an interval, and intervals are
widened until, over all settings and criteria together, a claim of its kind is wrong at most as often as `confidence`
allows (Bonferroni; only one end of each is read). The claims:

- the setting beats what it started from: its gain's lower end is above 0;
- a setting is worse than the best: the lower end of the paired difference is above 0. The truly best one is then kept
  among those not told apart (subset selection: Gupta 1965; multiple comparisons with the best: Hsu 1981);
- a setting is nearer to the reference than the best: the lower end of the paired difference in KL is above 0.

"Not distinguishable" is no claim of equality: how far behind the setting may be is said beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpo.pages.tables import number, points, share
from dpo.statistics.intervals import Estimate, Floats
from dpo.statistics.paired import seeds_and_items

Row = dict[str, Any]
# A setting is only preferred for being nearer to the reference when its KL is at most this share of the best one's.
NEARER = 0.8
ACCURACY, CHANCE = "reward accuracy", 0.5
FRACTIONS = ((0.22, 0.29, "a quarter"), (0.29, 0.38, "a third"), (0.45, 0.55, "half"), (0.62, 0.71, "two thirds"))


@dataclass(frozen=True)
class Criterion:
    """What settings are compared by: (seeds, items) of each, and of what each started from, on the same items."""

    name: str
    decides: bool
    policy: list[Floats]
    baseline: list[Floats]
    groups: Sequence[Hashable]

    def level(self, i: int) -> str:
        """The mean of a setting in words."""
        value = float(self.policy[i].mean())
        return f"{value:.0%}" if self.decides else f"{value:.2f}"

    def amount(self, value: float) -> str:
        """A difference without a sign in words."""
        return f"{100 * value:.0f} points" if self.decides else f"{value:.2f}"

    def words(self, estimate: Estimate) -> str:
        """A difference in words, with its interval."""
        return (points if self.decides else number)(asdict(estimate))


def widened(confidence: float, settings: int, criteria: int) -> float:
    """Confidence of each interval, of which one end is read, for `confidence` in the claims over all of them."""
    return max(confidence, 1 - 2 * (1 - confidence) / max(1, settings * criteria))


def choose_setting(
    labels: Sequence[str],
    criteria: Sequence[Criterion],
    kl: Sequence[Floats | None],
    confidence: float,
    resamples: int,
) -> Row:
    """The choice by the first criterion by which any setting beats its start beyond noise.

    Returns label (None: no setting does), reason, `by` (the criterion), and `against_best`: a row a setting.
    """
    strict = widened(confidence, len(labels), len(criteria))

    def estimate(values: Floats, groups: Sequence[Hashable], bounds: tuple[float, float] | None = None) -> Estimate:
        return seeds_and_items(values, groups, resamples, strict, 0, bounds)

    failed: list[str] = []
    for criterion in criteria:
        best = max(range(len(labels)), key=lambda i: float(criterion.policy[i].mean()))
        bounds = (-1.0, 1.0) if criterion.decides else None
        most = (-CHANCE, 1 - CHANCE) if criterion.name == ACCURACY else bounds
        sides = zip(criterion.policy, criterion.baseline, strict=True)
        gains = [estimate(policy - base, criterion.groups, most) for policy, base in sides]
        gaps = [
            None if i == best else estimate(_paired(criterion.policy[best], policy), criterion.groups, bounds)
            for i, policy in enumerate(criterion.policy)
        ]
        rows = [
            {"label": label, "level": float(criterion.policy[i].mean()), "gain": asdict(gains[i]),
             "behind_best": None if gap is None else asdict(gap),
             "distinguishable": gap is not None and gap.low > 0}
            for i, (label, gap) in enumerate(zip(labels, gaps, strict=True))
        ]  # fmt: skip
        found: Row = {"by": criterion.name, "decides": criterion.decides, "best": labels[best], "against_best": rows,
                      "confidence": strict}  # fmt: skip
        start = "chance" if criterion.name == ACCURACY else "the unaligned model"
        if gains[best].low <= 0:
            failed.append(
                f"by {criterion.name} no setting beats {start} beyond noise (the best, {labels[best]}: "
                f"{criterion.words(gains[best])})"
            )
            continue
        alike = [i for i, row in enumerate(rows) if not row["distinguishable"]]
        taken, reason = _take(labels, criterion, best, [i for i in alike if gains[i].low > 0], kl, estimate)
        if (gap := gaps[taken]) is not None:
            reason += f" It may be up to {criterion.amount(gap.high)} behind."
        reason += f" Over {start} it gains {criterion.words(gains[taken])}."
        others = [labels[i] for i in alike if i not in (taken, best)]
        if others:
            reason += f" Not distinguishable from the best either: {'; '.join(others)}."
        if failed:
            reason = f"{_sentence(failed)} {reason}"
        if criterion.name == ACCURACY:
            reason += " Take it as a hint: what the answers are worth is not shown."
        return found | {"label": labels[taken], "alike": [labels[i] for i in alike], "reason": reason}
    more = "Train longer, or ask more: sweep.evaluation.prompts=300 sweep.evaluation.pairs=null."
    return found | {"label": None, "alike": list(labels), "reason": f"No recommendation: {'; '.join(failed)}. {more}"}


def _take(
    labels: Sequence[str],
    criterion: Criterion,
    best: int,
    near: Sequence[int],
    kl: Sequence[Floats | None],
    estimate: Any,
) -> tuple[int, str]:
    """The best setting, or one that cannot be told from it and is nearer to the reference for sure."""
    own = kl[best]
    measured = [(float(found.mean()), i) for i in near if (found := kl[i]) is not None]
    if own is not None and measured:
        distance, nearest = min(measured)
        other = kl[nearest]
        assert other is not None
        ratio = distance / float(own.mean()) if own.mean() > 0 else 1.0
        # KL was measured on answers to the same prompts, so this too is a paired difference.
        surely = own.shape[1] == other.shape[1] and estimate(_paired(own, other), range(own.shape[1])).low > 0
        if nearest != best and ratio <= NEARER and surely:
            return nearest, (
                f"{labels[nearest]}: not distinguishable from the best, {labels[best]}, by {criterion.name} "
                f"({criterion.level(nearest)} against {criterion.level(best)}) at {_fraction(ratio)} of its KL "
                f"({distance:.2g} against {float(own.mean()):.2g} nats an answer)."
            )
    alone = " and distinguishable from all others" if len(near) == 1 and len(labels) > 1 else ""
    return best, f"{labels[best]}: best by {criterion.name} ({criterion.level(best)}){alone}."


def _paired(first: Floats, second: Floats) -> Floats:
    """Differences item by item: seed by seed where both have as many, else of the means over seeds."""
    if first.shape == second.shape:
        return first - second
    mean: Floats = first.mean(0, keepdims=True) - second.mean(0, keepdims=True)
    return mean


def _fraction(ratio: float) -> str:
    return next((name for low, high, name in FRACTIONS if low <= ratio <= high), f"{ratio:.0%}")


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def choose_by_dev(settings: Sequence[Row]) -> Row:
    """Without an evaluation there is only each job's dev accuracy; it can rule out, and hint, but not decide."""
    empty: Row = {"label": None, "by": "dev accuracy", "best": None, "alike": [], "against_best": []}
    if not settings:
        return empty | {"reason": "No recommendation: no job has completed with anything held out."}
    best = max(settings, key=lambda row: row["accuracy"]["value"])
    alike = [row for row in settings if row["accuracy"]["high"] >= best["accuracy"]["low"]]
    said = (
        f"No job was evaluated, so this rests on dev accuracy in training alone: the best is {best['label']}, "
        f"{share(best['accuracy'])} of {best['accuracy']['n']} pairs"
    )
    if best["accuracy"]["low"] <= 0.5:
        reason = f"{said}, which is not above chance beyond noise. No recommendation."
        return empty | {"best": best["label"], "alike": [row["label"] for row in alike], "reason": reason}
    others = len(alike) - 1
    overlap = f"; the intervals of {others} other{'s' if others != 1 else ''} overlap with it" if others else ""
    reason = f"{said}{overlap}. Evaluate to decide (sweep.evaluate=true)."
    return empty | {
        "label": best["label"],
        "best": best["label"],
        "alike": [row["label"] for row in alike],
        "reason": reason,
    }
