"""Held-out pairs: implicit rewards of policy against reference, pair by pair, and what they add up to.

The implicit reward of an answer is beta (log pi(y|x) - log pi_ref(y|x)) (DPO, arXiv:2305.18290, equation 5). At the
start policy and reference are one, every reward is 0 and every pair a tie: accuracy 50% by definition. What the
reference already prefers is therefore reported beside it as log pi_ref(chosen) > log pi_ref(rejected).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpo.statistics.calibration import calibration
from dpo.statistics.intervals import Estimate, bootstrap_mean, bootstrap_share

TIED = 0.5
"""Implicit-reward accuracy of the reference: all its rewards are 0."""


@dataclass(frozen=True)
class PairRow:
    """One held-out pair. Log-probs are sums over completion tokens in nats; `group` is its prompt (post, question)."""

    id: str
    group: str
    chosen_tokens: int
    rejected_tokens: int
    strength: float
    policy_chosen: float
    policy_rejected: float
    reference_chosen: float
    reference_rejected: float


def summarise_pairs(
    rows: Sequence[PairRow], beta: float, resamples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Figures over held-out pairs, each with a bootstrap interval over prompts.

    Accuracies count a tie as half; `accuracy_not_shorter` is over pairs whose chosen answer is not the shorter one,
    where brevity alone gains nothing; `accuracy_gain` is over the reference's own accuracy, `TIED`. `likelier*` compare
    the log-probs of chosen and rejected themselves: what a model prefers, not what it has learned to.
    `*_per_token` divide each log-ratio by its completion's tokens first, so that a
    long answer does not count more. Log-ratios are in nats, rewards and margins are beta times that.

    Of single answers, which lack a side, each is right where its log-ratio lies on its side of 0; figures of a side are
    over the answers it has, and what compares two answers is None.
    """
    columns = {name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in _NUMBERS}
    chosen_tokens, rejected_tokens = columns["chosen_tokens"], columns["rejected_tokens"]
    chosen_ratio = columns["policy_chosen"] - columns["reference_chosen"]
    rejected_ratio = columns["policy_rejected"] - columns["reference_rejected"]
    margin = chosen_ratio - rejected_ratio
    chosen_each = chosen_ratio / np.maximum(chosen_tokens, 1)
    rejected_each = rejected_ratio / np.maximum(rejected_tokens, 1)
    per_token = chosen_each - rejected_each
    groups = [row.group for row in rows]
    good, bad = chosen_tokens > 0, rejected_tokens > 0

    def over(estimate: Callable[..., Any], values: np.ndarray, there: np.ndarray | None, *ends: Any) -> Any:
        if there is not None and not there.any():
            return None
        kept = np.ones(len(values), bool) if there is None else there
        of = [group for group, is_there in zip(groups, kept, strict=True) if is_there]
        return plain(estimate(values[kept], of, resamples, confidence, seed, *ends))

    def mean(values: np.ndarray, there: np.ndarray | None = None) -> dict[str, Any] | None:
        found: dict[str, Any] | None = over(bootstrap_mean, values, there)
        return found

    def part(
        values: np.ndarray, there: np.ndarray | None = None, low: float = 0.0, high: float = 1.0
    ) -> dict[str, Any] | None:
        found: dict[str, Any] | None = over(bootstrap_share, values, there, (low, high))
        return found

    def preferred(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (first > second) + 0.5 * (first == second)

    after = preferred(chosen_ratio, rejected_ratio)
    base = preferred(columns["reference_chosen"], columns["reference_rejected"])
    likelier = preferred(columns["policy_chosen"], columns["policy_rejected"])
    probability = 1 / (1 + np.exp(-np.clip(beta * margin, -500, 500)))
    found = calibration(probability, groups, resamples, confidence, seed)
    return {
        "pairs": len(rows),
        "prompts": len(set(groups)),
        "beta": beta,
        "accuracy": part(after),
        "accuracy_not_shorter": part(after, good & bad & (chosen_tokens >= rejected_tokens)),
        "accuracy_gain": part(after - TIED, low=-TIED, high=1 - TIED),
        "accuracy_per_token": part(preferred(per_token, np.zeros_like(per_token))),
        "likelier_before": part(base, good & bad),
        "likelier": part(likelier, good & bad),
        "likelier_gain": part(likelier - base, good & bad, low=-1.0),
        "margin": mean(beta * margin),
        "margin_per_token": mean(beta * per_token),
        "chosen_log_ratio": mean(chosen_ratio, good),
        "rejected_log_ratio": mean(rejected_ratio, bad),
        "chosen_log_ratio_per_token": mean(chosen_each, good),
        "rejected_log_ratio_per_token": mean(rejected_each, bad),
        "loss": mean(np.logaddexp(0, -beta * margin)),
        "calibration_error": plain(found.error),
        "calibration_bins": found.bins,
        "chosen_tokens": mean(chosen_tokens, good),
        "rejected_tokens": mean(rejected_tokens, bad),
    }


_NUMBERS = (
    "chosen_tokens",
    "rejected_tokens",
    "policy_chosen",
    "policy_rejected",
    "reference_chosen",
    "reference_rejected",
)


def plain(estimate: Estimate) -> dict[str, Any]:
    """An Estimate as JSON."""
    return asdict(estimate)


def score_pairs(
    pairs: Sequence[Any],
    groups: Sequence[str],
    score: Callable[[str, list[Any]], list[tuple[float, float]]],
    done: Callable[[list[PairRow]], None],
    chunk: int = 32,
) -> None:
    """Score TokenPairs by both sides, `chunk` at a time, and hand finished rows to `done`.

    Args:
        score: (side, pairs) -> (log p(chosen), log p(rejected)) of each, as
            `dpo.engine.log_probs.sequence_log_probs` gives it.
    """
    for start in range(0, len(pairs), chunk):
        part = list(pairs[start : start + chunk])
        policy, reference = score("policy", part), score("baseline", part)
        done(
            [
                PairRow(pair.id, group, pair.counted[0], pair.counted[1], pair.strength, *mine, *theirs)
                for pair, group, mine, theirs in zip(
                    part, groups[start : start + chunk], policy, reference, strict=True
                )
            ]
        )
