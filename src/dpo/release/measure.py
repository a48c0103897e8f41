"""The certificate of an export: how far its log-probs are from those of the model that was trained.

Two differences are told apart. What rounding the merged weights changed, against the adapter on the same base in
16 bits: this is the export's own doing, and the bound is on it. What quantization changed, between the adapter on the
quantized base it was trained on and on the base in 16 bits: no export can undo that, so it is information. Both are
measured against the adapter's own effect, the log-ratios of policy to reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo.statistics.intervals import bootstrap_mean, bootstrap_share

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Nats. Where training changed less than this, a share of it says nothing, and differences are held against this.
SMALLEST_EFFECT = 0.01
# Adding up in fp32 is exact to about 1e-5 of the effect; more than this and the merge itself is wrong.
MERGE_BOUND = 0.01


@dataclass(frozen=True)
class Scored:
    """Log-probs in nats of one model and of its reference, both (pairs, 2): chosen and rejected completions."""

    name: str
    label: str
    policy: Floats
    reference: Floats

    @property
    def log_ratio(self) -> Floats:
        """(pairs, 2) log pi - log pi_ref."""
        return self.policy - self.reference


def distribution(values: Floats, tokens: Floats) -> Row:
    """Quantiles, largest, mean and root mean square of (pairs, 2) differences in nats a sequence, and per token."""
    there = tokens.ravel() > 0
    flat, tokens = values.ravel()[there], tokens.ravel()[there]
    return {
        "quantiles": {f"{q:g}": float(np.quantile(flat, q)) for q in QUANTILES},
        "largest": float(np.abs(flat).max()),
        "mean": float(flat.mean()),
        "rms": float(np.sqrt((flat**2).mean())),
        "rms_per_token": float(np.sqrt(((flat / tokens) ** 2).mean())),
        "sequences": len(flat),
    }


def certify(
    models: Sequence[Scored],
    merged: Floats | None,
    tokens: Floats,
    groups: Sequence[str],
    beta: float,
    bound: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> Row:
    """The figures of a certificate.

    Args:
        models: the model as trained; the adapter on the unquantized base, when that is another; the export, last.
        merged: log-probs of the merged model before it was rounded, if there is one.
        tokens: (pairs, 2) completion tokens.
        groups: the prompt of each pair.
        bound: most the export may differ from the model before it in `models`, as a share of that one's effect.
    """
    *before, exported = models
    target = before[-1]
    effect = distribution(target.log_ratio, tokens)
    scale = max(effect["rms"], SMALLEST_EFFECT)
    differences: Row = {}

    def difference(key: str, label: str, values: Floats) -> None:
        found = distribution(values, tokens)
        differences[key] = {"label": label, **found, "share_of_effect": found["rms"] / scale}

    if merged is not None:
        difference("merge", f"merged, not yet rounded - {target.label}", merged - target.policy)
    difference("export", f"{exported.label} - {target.label}", exported.policy - target.policy)
    if len(before) == 2:
        trained = before[0]
        difference("quantization", f"{target.label} - {trained.label}", target.policy - trained.policy)
        difference("both", f"{exported.label} - {trained.label}", exported.policy - trained.policy)
        difference(
            "effect_of_quantization",
            "log-ratios on the 16-bit base - log-ratios on the quantized base",
            target.log_ratio - trained.log_ratio,
        )
    measured = differences["export"]["share_of_effect"]
    exact = merged is None or differences["merge"]["share_of_effect"] <= MERGE_BOUND

    def mean(values: Floats) -> Row:
        return asdict(bootstrap_mean(values, groups, resamples, confidence, seed))

    def part(values: Floats) -> Row:
        return asdict(bootstrap_share(values, groups, resamples, confidence, seed))

    return {
        "pairs": len(groups),
        "prompts": len(set(groups)),
        "beta": beta,
        "confidence": confidence,
        "models": {m.name: {"label": m.label, **_margins(m, beta, tokens, mean, part)} for m in models},
        "effect": {"label": f"what training changed: log-ratios of the {target.label}", **effect},
        "differences": differences,
        "bound": bound,
        "measured": measured,
        "merge_bound": MERGE_BOUND,
        "within_bound": bool(exact and measured <= bound),
    }


def _margins(model: Scored, beta: float, tokens: Floats, mean: Any, share: Any) -> Row:
    """Accuracies count a tie as half, as in `dpo.evaluation.pairs`; single answers have no likelier one."""
    rewards = beta * model.log_ratio
    margin = rewards[:, 0] - rewards[:, 1]
    policy = model.policy[:, 0] - model.policy[:, 1]
    return {
        "accuracy": share((margin > 0) + 0.5 * (margin == 0)),
        "margin": mean(margin),
        "policy_accuracy": share((policy > 0) + 0.5 * (policy == 0)) if (tokens > 0).all() else None,
    }
