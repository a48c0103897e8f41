"""How a judge agrees with gold labels: precision and recall of decisions, accuracy of preferences, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dpo.evaluation.judges.interface import Verdict
from dpo.statistics.agreement import cohen_kappa
from dpo.statistics.intervals import bootstrap_share, wilson

Row = dict[str, Any]


def _figure(key: str, label: str, estimate: Any) -> Row:
    return {"key": key, "label": label, "share": True, "policy": asdict(estimate)}


def decision_agreement(
    verdicts: Sequence[Verdict], gold: Sequence[float | None], gold_is: str, interval: Row
) -> list[Row]:
    """Precision, recall and accuracy (Wilson's intervals) of finding the answers that have the gold label.

    `gold_is` says which verdict finds one: "passed", or "failed" where the label names a fault such as toxicity.
    Rows without a label or a decision are left out.
    """
    wanted = gold_is == "passed"
    known = [
        (v.passed is wanted, g == 1.0)
        for v, g in zip(verdicts, gold, strict=True)
        if v.passed is not None and v.score is not None and g is not None
    ]
    found, labelled = sum(f for f, _ in known), sum(g for _, g in known)
    both = sum(f and g for f, g in known)
    rows = []
    for key, label, hits, of in (
        ("precision", f"precision: {gold_is} that have the gold label", both, found),
        ("recall", f"recall: gold labels that {gold_is}", both, labelled),
        ("accuracy", f"accuracy against gold ({labelled} of {len(known)} labelled)",
         sum(f == g for f, g in known), len(known)),
    ):  # fmt: skip
        if of:
            rows.append(_figure(key, label, wilson(hits, of, interval["confidence"])))
    return rows


def preference_agreement(verdicts: Sequence[Verdict], gold: Sequence[float | None], interval: Row) -> list[Row]:
    """Share of pairs where the judge prefers the gold answer (a tie is half), with the bootstrap's interval.

    Of judges that see both orders also the mean over the two orders, which is LLMBar's accuracy (arXiv:2310.07641,
    section 4.1).
    """
    known = [(v, g) for v, g in zip(verdicts, gold, strict=True) if v.score is not None and g is not None]
    if not known:
        return []

    def right(score: float, better: float) -> float:
        return 0.5 if score == 0.5 else float((score > 0.5) == (better == 1.0))

    agreed = bootstrap_share([right(v.score, g) for v, g in known if v.score is not None], None, **interval)
    rows = [_figure("agreement", f"agreement with gold on {len(known)} pairs (a tie is half)", agreed)]
    ordered = [(v.details["forward"], v.details["backward"], g) for v, g in known if "backward" in v.details]
    if ordered:
        mean = bootstrap_share([(right(f, g) + right(b, g)) / 2 for f, b, g in ordered], None, **interval)
        rows.append(_figure("agreement_of_orders", "agreement with gold, mean of both orders", mean))
    # A tie is a category of its own: gold never names it, so a judge of many ties agrees little.
    named = [(v.score > 0.5) - (v.score < 0.5) for v, _ in known if v.score is not None]
    kappa = cohen_kappa(named, [1 if g == 1.0 else -1 for _, g in known], None, **interval)
    if kappa is not None:
        rows.append(_figure("kappa", "Cohen's kappa with gold (1 full agreement, 0 chance)", kappa) | {"share": False})
    return rows
