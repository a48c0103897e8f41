"""Answers ranked by any judge that ranks: a score each, from single verdicts or from all duels of a prompt."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dpo.config.judges import Judges
from dpo.data.pair import Message
from dpo.errors import ConfigError
from dpo.evaluation.judges.ask import preferences, verdicts
from dpo.evaluation.judges.interface import AnyJudge, Benchmark, Item, Judge, PairItem, PairJudge, ranks
from dpo.evaluation.judges.table import build_judges

Rows = Sequence[dict[str, Any]]


def the_judge(config: Judges) -> Judge | PairJudge:
    """The one judge that ranks; raises ConfigError when several are asked for, or it does not rank."""
    judges = build_judges(config)
    return ranking([name for name, settings in vars(config).items() if settings is not None], judges)


def ranking(names: Sequence[str], judges: Sequence[AnyJudge]) -> Judge | PairJudge:
    """Of what one option gives, the judge that ranks: language models and people compare answers and grade them too,
    and comparing tells good answers apart better than grades do."""
    asked = f"judge=[{', '.join(names)}]"
    if len(names) != 1:
        raise ConfigError(f"{asked}: one judge ranks the answers; choose one, as in judge=[rules]")
    able = [judge for judge in judges if not isinstance(judge, Benchmark) and ranks(judge)]
    if not able:
        raise ConfigError(f"{asked}: does not say which of two answers is better")
    return next((judge for judge in able if isinstance(judge, PairJudge)), able[0])


def rank(rows: Rows, judge: Judge | PairJudge) -> list[dict[str, Any]]:
    """The rows that were judged, each with meets (None where the judge does not decide), score, failed, judge_cost
    and judged_by. Empty and refused answers and undecided verdicts are left out."""
    rows = [row for row in rows if row["answer"].strip() and "error" not in row]
    return _by_duels(rows, judge) if isinstance(judge, PairJudge) else _one_by_one(rows, judge)


def _prompt(row: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("user", row["prompt"]),)


def _one_by_one(rows: Rows, judge: Judge) -> list[dict[str, Any]]:
    items = [Item(str(row["index"]), _prompt(row), row["answer"], row["finished"], row["subject"]) for row in rows]
    return [
        {
            **row,
            "meets": verdict.passed,
            "score": verdict.score,
            "failed": [facet for facet in verdict.reason.split(", ") if facet] if verdict.passed is False else [],
            "judge_cost": verdict.cost,
            "judged_by": verdict.provenance,
        }
        for row, verdict in zip(rows, verdicts(judge, items), strict=True)
        if verdict.score is not None
    ]


def _by_duels(rows: Rows, judge: PairJudge) -> list[dict[str, Any]]:
    """The score is the mean over the duels with the prompt's other answers: 1 a win, 1/2 a tie (Copeland)."""
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt"]].append(row)
    duels = [duel for answers in by_prompt.values() for duel in itertools.combinations(answers, 2)]
    items = [
        PairItem(f"{one['index']}:{other['index']}", _prompt(one), one["answer"], other["answer"])
        for one, other in duels
    ]
    points: dict[int, list[float]] = defaultdict(list)
    costs: dict[int, float] = defaultdict(float)
    provenance = judge.name
    for (one, other), verdict in zip(duels, preferences(judge, items), strict=True):
        for row in (one, other):
            costs[row["index"]] += verdict.cost / 2
        if verdict.score is not None:
            provenance = verdict.provenance if verdict.provenance.strip() else provenance
            points[one["index"]].append(verdict.score)
            points[other["index"]].append(1 - verdict.score)
    return [
        {
            **row,
            "meets": None,
            "score": sum(won) / len(won),
            "failed": [],
            "judge_cost": costs[row["index"]],
            "judged_by": provenance,
        }
        for row in rows
        if (won := points[row["index"]])
    ]
