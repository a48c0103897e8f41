"""Judge both sides' answers and put the verdicts of the two sides of each prompt together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dpo.config.evaluation import Evaluation
from dpo.data.words import word_count
from dpo.evaluation.answers import Prompt
from dpo.evaluation.judges.ask import preferences, verdicts
from dpo.evaluation.judges.interface import Item, Judge, PairItem, PairJudge, Verdict
from dpo.evaluation.sides import BASELINE, POLICY, SIDES
from dpo.statistics.intervals import bootstrap_mean, bootstrap_share, compare_scores, wilson
from dpo.statistics.length_control import length_controlled_win_rate
from dpo.statistics.paired import paired_shares

Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What one judge found: a verdict an answer, the policy's first, and the items and verdicts as the judge saw them.

    Of a pair judge `sides` holds each pair's verdict from the policy's view, then from the baseline's.
    """

    judge: Judge | PairJudge
    sides: list[Verdict]
    items: Sequence[Item | PairItem]
    found: list[Verdict]


def judge_answers(judge: Judge | PairJudge, prompts: Mapping[str, Prompt], answers: Sequence[Row]) -> Judgement:
    """Judge `answers` (the policy's, then the baseline's to the same prompts); what is in the cache is not asked."""
    if isinstance(judge, PairJudge):
        split = len(answers) // 2
        pairs = []
        for mine, base in zip(answers[:split], answers[split:], strict=True):
            prompt = prompts[mine["prompt"]]
            name = f"{prompt.id}:{mine['sample']}"
            both, group = (mine["answer"], base["answer"]), prompt.group or prompt.id
            pairs.append(PairItem(name, prompt.messages, *both, group, prompt.meta, prompt.tools))
        found = preferences(judge, pairs)
        return Judgement(judge, [*found, *map(_turned, found)], pairs, found)
    items = []
    for row in answers:
        prompt = prompts[row["prompt"]]
        items.append(
            Item(
                f"{row['side']}:{prompt.id}:{row['sample']}",
                prompt.messages,
                row["answer"],
                row["finished"],
                prompt.subject,
                prompt.group or prompt.id,
                prompt.meta,
                prompt.tools,
            )
        )
    found = verdicts(judge, items)
    return Judgement(judge, found, items, found)


def _turned(verdict: Verdict) -> Verdict:
    """A pair's verdict from the other side; its cost stands on the first."""
    return replace(verdict, score=None if verdict.score is None else 1 - verdict.score, cost=0.0)


def verdict_rows(judgement: Judgement, answers: Sequence[Row]) -> list[Row]:
    """The rows of verdicts.jsonl, one an answer."""
    return [
        {
            "judge": judgement.judge.name,
            "side": answer["side"],
            "prompt": answer["prompt"],
            "sample": answer["sample"],
            **{k: v for k, v in asdict(verdict).items() if k != "id"},
            "outcome": verdict.outcome,
        }
        for answer, verdict in zip(answers, judgement.sides, strict=True)
    ]


def summarise_undecided(judgement: Judgement) -> Row | None:
    """How many verdicts are missing and why; None when none is."""
    reasons = Counter(v.reason for v in judgement.found if v.score is None)
    if not reasons:
        return None
    return {"count": reasons.total(), "of": len(judgement.found), "reasons": dict(reasons.most_common(5))}


def summarise_verdicts(
    answers: Sequence[Row], judgement: Judgement, prompts: Mapping[str, Prompt], settings: dict[str, Any]
) -> Row | None:
    """Policy against baseline by one judge: each side's mean outcome, the paired difference, wins, length control.

    Prompts with an undecided side are left out; None when no other is there.
    """
    split = len(answers) // 2
    decided = [i for i in range(split) if {judgement.sides[j].outcome for j in (i, i + split)}.isdisjoint({None})]
    if not decided:
        return None
    mine = [judgement.sides[i] for i in decided]
    base = [judgement.sides[i + split] for i in decided]
    groups = [prompts[answers[i]["prompt"]].group or answers[i]["prompt"] for i in decided]
    policy = np.array([v.outcome for v in mine], dtype=np.float64)
    baseline = np.array([v.outcome for v in base], dtype=np.float64)
    compared = compare_scores(policy, baseline, groups, **settings)
    words = [[word_count(answers[i + shift]["answer"]) for i in decided] for shift in (0, split)]
    gap = np.array(words[0], dtype=np.float64) - np.array(words[1], dtype=np.float64)
    outcome = (np.sign(policy - baseline) + 1) / 2
    yes_or_no = all(v.passed is not None for v in (*mine, *base))
    decides = yes_or_no or isinstance(judgement.judge, PairJudge)

    trials, confidence = len(set(groups)), settings["confidence"]

    def level(values: np.ndarray) -> Row:
        # Wilson where rows are independent yes-or-no trials; otherwise the bootstrap over prompts, which has no width
        # where all are alike: then each prompt is a trial.
        if yes_or_no and (trials == len(groups) or _alike(values)):
            return asdict(wilson(round(float(values.mean()) * trials), trials, confidence))
        return asdict((bootstrap_share if decides else bootstrap_mean)(values, groups, **settings))

    def difference() -> Row:
        if yes_or_no and _alike(policy) and _alike(baseline):
            return asdict(paired_shares(policy[:1].repeat(trials), baseline[:1].repeat(trials), confidence))
        if decides:
            return asdict(bootstrap_share(policy - baseline, groups, **settings, bounds=(-1.0, 1.0)))
        return asdict(bootstrap_mean(policy - baseline, groups, **settings))

    return {
        "decides": decides,
        POLICY: level(policy),
        BASELINE: level(baseline),
        "difference": difference(),
        "wins": compared.wins,
        "ties": compared.ties,
        "losses": compared.losses,
        "net": asdict(compared.net),
        "win_rate": asdict(compared.win_rate),
        "sign_test_p": compared.p,
        "length_controlled_win_rate": asdict(
            length_controlled_win_rate(
                outcome, gap, groups, min(settings["resamples"], 1000), settings["confidence"], settings["seed"]
            )
        ),
        "reasons": {side: _reasons(found) for side, found in ((POLICY, mine), (BASELINE, base))},
        "cost": sum(v.cost for v in judgement.found),
    }


def _alike(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def interval(config: Evaluation) -> dict[str, Any]:
    """The arguments of every bootstrap."""
    return {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}


def _reasons(found: Sequence[Verdict]) -> dict[str, int]:
    counts = Counter(reason for v in found if v.passed is False for reason in v.reason.split(", "))
    return dict(counts.most_common())


def summarise_answers(answers: Sequence[Row], config: Evaluation) -> Row:
    """Length, truncation and emptiness of each side's answers, and the paired difference in length; a mean over none is
    None."""
    split = len(answers) // 2
    groups = [row["prompt"] for row in answers[:split]]
    settings = interval(config)
    found: Row = {"prompts": len(set(groups)), "answers": split}

    def mean(values: Any) -> Row | None:
        return asdict(bootstrap_mean(values, groups, **settings)) if groups else None

    words: dict[str, np.ndarray] = {}
    for side, rows in zip(SIDES, (answers[:split], answers[split:]), strict=True):
        words[side] = np.array([word_count(row["answer"]) for row in rows], dtype=np.float64)
        found[side] = {
            "words": mean(words[side]),
            "tokens": mean([row["tokens"] for row in rows]),
            "finished": sum(row["finished"] for row in rows),
            "truncated": sum(not row["finished"] for row in rows),
            "empty": sum(not row["answer"].strip() for row in rows),
        }
    found["words_difference"] = mean(words[POLICY] - words[BASELINE])
    return found
