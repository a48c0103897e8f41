"""What a run's own figures say about it, in words, with the evidence beside each; nothing is measured here."""

from __future__ import annotations

from typing import Any

from dpo.pages import reward
from dpo.pages.evaluation_findings import displacement, length_exploitation, movement, noise, truncation, undecided
from dpo.pages.finding import FEWEST, GOOD, NOTE, UNKNOWN, WARNING, Finding
from dpo.pages.tables import counted
from dpo.pages.training_findings import loss_moves, overfitting, reference_identity
from dpo.records.judged import fitting
from dpo.records.read import Found, RunFiles

Row = dict[str, Any]


def findings(run: RunFiles, summary: Row | None) -> list[Finding]:
    """All findings on a run; `summary` is its evaluation's, None when it has none.

    Judges that do not fit the run's rows have no say.
    """
    said = []
    if summary is not None:
        fit = fitting(summary["judges"], run.config)
        said = [] if fit else [Finding("Judged answers", NOTE, undecided(summary))]
        summary = Found({**summary, "judges": {name: summary["judges"][name] for name in fit}})
    pairs = summary["pairs"]["pairs"] if summary else dev_pairs(run)
    if reward.is_reward(run):
        return [
            loss_moves(run),
            _of(dev_pairs(run), "dev pairs", overfitting(run)),
            _of(pairs, "held-out pairs", reward.length_learned(summary)),
        ]
    prompts = summary["answers"].get("prompts") if summary else None
    measured = (summary["divergence"] or {}).get("answers") if summary else None
    return [
        reference_identity(run),
        loss_moves(run),
        _of(dev_pairs(run), "dev pair", overfitting(run)),
        _of(pairs, "held-out pair", displacement(run, summary)),
        *[
            _of((judged["difference"] or {}).get("n"), "prompt", noise(name, judged))
            for name, judged in (summary["judges"] if summary else {}).items()
        ],
        *said,
        _of(prompts, "prompt", length_exploitation(summary), GOOD, NOTE, WARNING),
        _of(prompts, "prompt", truncation(summary)),
        _of(measured, "answer", movement(summary)),
    ]


def _of(count: Any, what: str, found: Finding, *levels: str) -> Finding:
    """A finding, but too few for a good one (or one of `levels`): what so few do not show may well be there."""
    if found.level not in (levels or (GOOD,)) or not isinstance(count, int) or count >= FEWEST:
        return found
    key = "dataset.dev_fraction" if what == "dev pair" else "dataset.test_fraction"
    words = f"Too few to say: {counted(count, what)}, {FEWEST} are the least. Hold out more with {key}."
    return Finding(found.name, UNKNOWN, words, found.evidence)


def dev_pairs(run: RunFiles) -> int | None:
    """How many dev pairs each evaluation of a run scored, where that is known."""
    kept, limit = (run.data.get("kept") or {}).get("dev"), (run.config.get("dpo") or {}).get("eval_limit")
    return None if not isinstance(kept, int) else min(kept, limit) if isinstance(limit, int) else kept
