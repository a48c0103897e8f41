"""Judges over a file of responses: a figure table a judge, and each verdict as a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dpo.errors import ConfigError
from dpo.evaluation.judges.ask import preferences, verdicts
from dpo.evaluation.judges.gold import decision_agreement, preference_agreement
from dpo.evaluation.judges.interface import AnyJudge, Benchmark, Item, Judge, PairJudge, Verdict, ranks
from dpo.evaluation.responses import Responses
from dpo.evaluation.summary.figures import one_side
from dpo.statistics.intervals import bootstrap_mean, bootstrap_share, wilson

Row = dict[str, Any]


def judge_responses(judge: AnyJudge, asked: Responses, gold_is: str, interval: Row) -> tuple[Row, list[Row]]:
    """(summary, a row a verdict). A judge of single answers compares the two of a pair by their outcomes."""
    if isinstance(judge, Benchmark):
        raise ConfigError(f"judge=[{judge.name}]: measures models, not answers; give a run directory")
    if isinstance(judge, PairJudge):
        if asked.pairs is None:
            raise ConfigError(f"judge=[{judge.name}]: compares two answers a row, and the file has one")
        found = preferences(judge, asked.pairs)
        figures = [_preferred(found, interval), *one_side(judge, asked.pairs, found, interval)]
        figures += preference_agreement(found, asked.gold, interval) if asked.gold else []
    else:
        found = verdicts(judge, asked.items)
        figures = [*_level(judge, asked.items, found, interval), *one_side(judge, asked.items, found, interval)]
        if asked.pairs is not None and ranks(judge):
            compared = _compare(found)
            figures.append(_preferred(compared, interval))
            figures += preference_agreement(compared, asked.gold, interval) if asked.gold else []
        elif asked.gold:
            figures += decision_agreement(found, asked.gold, gold_is, interval)
    decided = [v for v in found if v.score is not None]
    summary = {
        "label": judge.label,
        "definition": judge.definition,
        "count": len(found),
        "undecided": dict(Counter(v.reason for v in found if v.score is None).most_common(5)),
        "figures": [row for row in figures if row],
        "failed": dict(Counter(r for v in decided if v.passed is False for r in v.reason.split(", ")).most_common()),
        "cost": sum(v.cost for v in found),
    }
    return summary, [{"judge": judge.name, **asdict(verdict), "outcome": verdict.outcome} for verdict in found]


def _level(judge: Judge, items: Sequence[Item], found: Sequence[Verdict], interval: Row) -> list[Row]:
    kept = [(item.group or item.prompt, v.outcome) for item, v in zip(items, found, strict=True) if v.score is not None]
    groups, values = [group for group, _ in kept], [float(outcome) for _, outcome in kept if outcome is not None]
    if not values or not ranks(judge):
        return []
    decides = all(v.passed is not None for v in found if v.score is not None)
    independent = decides and len(set(groups)) == len(groups)
    confidence = interval["confidence"]
    if independent:
        estimate = wilson(int(sum(values)), len(values), confidence)
    else:
        estimate = (bootstrap_share if decides else bootstrap_mean)(values, groups, **interval)
    label = f"{judge.label}: {sum(values):.0f} of {len(values)}" if decides else judge.label
    return [{"key": "level", "label": label, "share": decides, "policy": asdict(estimate)}]


def _preferred(found: Sequence[Verdict], interval: Row) -> Row:
    scores = [v.score for v in found if v.score is not None]
    if not scores:
        return {}
    wins, ties = sum(s > 0.5 for s in scores), sum(s == 0.5 for s in scores)
    label = f"first answer preferred ({wins} wins, {ties} ties, {len(scores) - wins - ties} losses)"
    estimate = bootstrap_share(scores, None, **interval)
    return {"key": "preferred", "label": label, "share": True, "policy": asdict(estimate)}


def _compare(found: Sequence[Verdict]) -> list[Verdict]:
    """Preferences from verdicts on all first answers, then on all second ones."""
    split = len(found) // 2
    made = []
    for first, second in zip(found[:split], found[split:], strict=True):
        score = None
        if first.outcome is not None and second.outcome is not None:
            score = 0.5 + 0.5 * ((first.outcome > second.outcome) - (first.outcome < second.outcome))
        made.append(Verdict(first.id, score, None, "", 0.0, first.provenance))
    return made
