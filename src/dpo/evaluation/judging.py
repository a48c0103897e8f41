"""All judges of an evaluation: over the answers of both sides, over the sides themselves, and into its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dpo.data.sources.messages import message_dict
from dpo.evaluation.answers import Prompt
from dpo.evaluation.folder import EvaluationFolder
from dpo.evaluation.judges.interface import AnyJudge, Benchmark, Judge, Measured, PairJudge, ranks
from dpo.evaluation.sides import BASELINE, POLICY, SIDES, Sides
from dpo.evaluation.summary.figures import one_side, two_sides
from dpo.evaluation.verdicts import (
    Judgement,
    judge_answers,
    summarise_undecided,
    summarise_verdicts,
    verdict_rows,
)
from dpo.statistics.intervals import Estimate, bootstrap_mean, normal_quantile, wilson
from dpo.statistics.paired import paired_shares

Row = dict[str, Any]
SHOWN = ("score", "passed", "reason", "outcome")
BENCHMARKS = "benchmarks"


def judge_all(
    folder: EvaluationFolder, judges: Sequence[AnyJudge], prompts: Mapping[str, Prompt], answers: Sequence[Row]
) -> list[Judgement]:
    """Verdicts of every judge of answers, also as rows of verdicts.jsonl; those of other judges there are kept."""
    judged = [judge_answers(judge, prompts, answers) for judge in judges if isinstance(judge, (Judge, PairJudge))]
    names = {judgement.judge.name for judgement in judged}
    others = [row for row in folder.rows("verdicts") if row["judge"] not in names]
    folder.rewrite("verdicts", [*others, *(row for judgement in judged for row in verdict_rows(judgement, answers))])
    return judged


def measure_all(folder: EvaluationFolder, judges: Sequence[AnyJudge], sides: Sides) -> list[tuple[Benchmark, Row]]:
    """(benchmark, {side: its figures}); what benchmarks.jsonl holds of the same benchmark is not measured again."""
    measured: list[tuple[Benchmark, Row]] = []
    for judge in judges:
        if not isinstance(judge, Benchmark):
            continue
        rows = [r for r in folder.rows(BENCHMARKS) if (r["judge"], r["fingerprint"]) == (judge.name, judge.fingerprint)]
        known: Row = {row["side"]: [Measured(**figure) for figure in row["figures"]] for row in rows}
        for side in SIDES:
            if side in known:
                continue
            with sides.use(side) as model:
                known[side] = judge.measure(model, sides.tokenizer, side)
            row = {"judge": judge.name, "fingerprint": judge.fingerprint, "side": side}
            folder.append(BENCHMARKS, [row | {"figures": [asdict(figure) for figure in known[side]]}])
        measured.append((judge, known))
    return measured


def summarise_judges(
    answers: Sequence[Row],
    judged: Sequence[Judgement],
    measured: Sequence[tuple[Benchmark, Row]],
    prompts: Mapping[str, Prompt],
    interval: Row,
) -> Row:
    """`judges`: those that rank, policy against baseline; `figures`: what else was measured; `undecided`."""
    summary: Row = {"judges": {}, "figures": {}, "undecided": {}}
    for judgement in judged:
        judge = judgement.judge
        if undecided := summarise_undecided(judgement):
            summary["undecided"][judge.name] = undecided
        if isinstance(judge, PairJudge):
            rows = one_side(judge, judgement.items, judgement.found, interval)
        else:
            rows = two_sides(judge, judgement.items, judgement.found, interval)
        if rows:
            summary["figures"][judge.name] = {"definition": judge.definition, "rows": rows}
        if ranks(judge) and (compared := summarise_verdicts(answers, judgement, prompts, interval)):
            summary["judges"][judge.name] = {"label": judge.label, "definition": judge.definition, **compared}
    for benchmark, sides in measured:
        rows = _before_and_after(sides, interval)
        summary["figures"][benchmark.name] = {"definition": benchmark.definition, "rows": rows}
    return summary


def _before_and_after(sides: Row, interval: Row) -> list[Row]:
    rows = []
    for mine, base in zip(sides[POLICY], sides[BASELINE], strict=True):
        estimates = _by_question(mine, base, interval) or _by_errors(mine, base, interval["confidence"])
        named = {"key": mine.key, "label": mine.label, "share": mine.share}
        rows.append(named | {side: asdict(estimate) for side, estimate in estimates.items()})
    return rows


def _by_question(mine: Measured, base: Measured, interval: Row) -> dict[str, Estimate] | None:
    """Both sides answered the same questions, so the difference is paired: bootstrap over questions, or the intervals
    of shares (Wilson, Newcombe) where each is right or wrong."""
    if mine.values is None or base.values is None:
        return None
    first, second = np.array(mine.values), np.array(base.values)
    if np.isin([*first, *second], (0, 1)).all():
        confidence = interval["confidence"]
        return {
            POLICY: wilson(int(first.sum()), len(first), confidence),
            BASELINE: wilson(int(second.sum()), len(second), confidence),
            "difference": paired_shares(first, second, confidence),
        }
    return {
        POLICY: bootstrap_mean(first, None, **interval),
        BASELINE: bootstrap_mean(second, None, **interval),
        "difference": bootstrap_mean(first - second, None, **interval),
    }


def _by_errors(mine: Measured, base: Measured, confidence: float) -> dict[str, Estimate]:
    """Normal intervals from the benchmark's standard errors; the difference takes the sides as independent, which is
    too wide rather than too narrow."""
    z = normal_quantile((1 + confidence) / 2)

    def estimate(value: float, error: float | None) -> Estimate:
        half = 0.0 if error is None else z * error
        return Estimate(value, value - half, value + half, mine.n)

    both = None if mine.error is None or base.error is None else math.hypot(mine.error, base.error)
    return {
        POLICY: estimate(mine.value, mine.error),
        BASELINE: estimate(base.value, base.error),
        "difference": estimate(mine.value - base.value, both),
    }


def write_samples(
    folder: EvaluationFolder, prompts: Mapping[str, Prompt], answers: Sequence[Row], judged: Sequence[Judgement]
) -> None:
    """samples.jsonl: one line a prompt and sample, both answers and their verdicts side by side."""
    split = len(answers) // 2
    rows = []
    for i in range(split):
        prompt = prompts[answers[i]["prompt"]]
        row: Row = {
            "prompt": prompt.id,
            "sample": answers[i]["sample"],
            "messages": [{**message_dict(m), "content": m.content} for m in prompt.messages],
            "subject": prompt.subject,
            "group": prompt.group,
            "meta": dict(prompt.meta),
            **({"tools": prompt.tools} if prompt.tools else {}),
        }
        for side, j in ((POLICY, i), (BASELINE, i + split)):
            row[side] = {
                "answer": answers[j]["answer"],
                "tokens": answers[j]["tokens"],
                "finished": answers[j]["finished"],
                "verdicts": {
                    judgement.judge.name: {k: getattr(judgement.sides[j], k) for k in SHOWN}
                    for judgement in judged
                    if ranks(judgement.judge)
                },
            }
        rows.append(row)
    folder.rewrite("samples", rows)
