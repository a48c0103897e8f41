"""Judge both sides' answers and put the verdicts of the two sides of each prompt together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dpo.config.evaluation import Evaluation
from dpo.evaluation.answers import Prompt
from dpo.evaluation.folder import EvaluationFolder
from dpo.evaluation.judges import Item, Judge, Verdict
from dpo.evaluation.rules import word_count
from dpo.evaluation.sides import BASELINE, POLICY, SIDES
from dpo.evaluation.statistics import bootstrap_mean, compare_scores, length_controlled_win_rate, wilson

Row = dict[str, Any]


def judge_answers(
    folder: EvaluationFolder, judge: Judge, prompts: Mapping[str, Prompt], answers: Sequence[Row]
) -> list[Row]:
    """A verdict for each answer, in their order; those already in verdicts.jsonl are not asked for again."""
    known = {(r["side"], r["prompt"], r["sample"]): r for r in folder.rows("verdicts") if r["judge"] == judge.name}
    missing = [a for a in answers if (a["side"], a["prompt"], a["sample"]) not in known]
    items = [
        Item(
            f"{a['side']}:{a['prompt']}:{a['sample']}",
            prompts[a["prompt"]].messages,
            a["answer"],
            a["finished"],
            prompts[a["prompt"]].subject,
        )
        for a in missing
    ]
    verdicts: list[Verdict] = judge.judge(items)
    made = [
        {
            "judge": judge.name,
            "side": a["side"],
            "prompt": a["prompt"],
            "sample": a["sample"],
            **{k: v for k, v in asdict(verdict).items() if k != "id"},
            "outcome": verdict.outcome,
        }
        for a, verdict in zip(missing, verdicts, strict=True)
    ]
    folder.append("verdicts", made)
    known |= {(r["side"], r["prompt"], r["sample"]): r for r in made}
    return [known[a["side"], a["prompt"], a["sample"]] for a in answers]


def summarise_verdicts(answers: Sequence[Row], verdicts: Sequence[Row], config: Evaluation) -> Row:
    """Policy against baseline by one judge: each side's mean outcome, the paired difference, wins, length control."""
    split = len(answers) // 2
    mine, base = verdicts[:split], verdicts[split:]
    groups = [row["prompt"] for row in mine]
    policy = np.array([row["outcome"] for row in mine], dtype=np.float64)
    baseline = np.array([row["outcome"] for row in base], dtype=np.float64)
    settings = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    decided = all(row["passed"] is not None for row in verdicts)
    compared = compare_scores(policy, baseline, groups, **settings)  # type: ignore[arg-type]
    words = [word_count(answer["answer"]) for answer in answers]
    gap = np.array(words[:split], dtype=np.float64) - np.array(words[split:], dtype=np.float64)
    outcome = (np.sign(policy - baseline) + 1) / 2

    def level(values: np.ndarray) -> Row:
        # Wilson where rows are independent yes-or-no trials; otherwise the bootstrap over prompts.
        if decided and config.samples_per_prompt == 1:
            return asdict(wilson(int(values.sum()), len(values), config.confidence))
        return asdict(bootstrap_mean(values, groups, **settings))  # type: ignore[arg-type]

    return {
        "decides": decided,
        POLICY: level(policy),
        BASELINE: level(baseline),
        "difference": asdict(bootstrap_mean(policy - baseline, groups, **settings)),  # type: ignore[arg-type]
        "wins": compared.wins,
        "ties": compared.ties,
        "losses": compared.losses,
        "net": asdict(compared.net),
        "win_rate": asdict(compared.win_rate),
        "sign_test_p": compared.p,
        "length_controlled_win_rate": asdict(
            length_controlled_win_rate(
                outcome, gap, groups, min(config.resamples, 1000), config.confidence, config.seed
            )
        ),
        "reasons": {side: _reasons(rows) for side, rows in ((POLICY, mine), (BASELINE, base))},
        "cost": sum(row["cost"] for row in verdicts),
    }


def _reasons(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter(reason for row in rows if row["passed"] is False for reason in row["reason"].split(", "))
    return dict(counts.most_common())


def summarise_answers(answers: Sequence[Row], config: Evaluation) -> Row:
    """Length, truncation and emptiness of each side's answers, and the paired difference in length."""
    split = len(answers) // 2
    groups = [row["prompt"] for row in answers[:split]]
    settings = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    found: Row = {"prompts": len(set(groups)), "answers": split}
    words: dict[str, np.ndarray] = {}
    for side, rows in zip(SIDES, (answers[:split], answers[split:]), strict=True):
        words[side] = np.array([word_count(row["answer"]) for row in rows], dtype=np.float64)
        found[side] = {
            "words": asdict(bootstrap_mean(words[side], groups, **settings)),  # type: ignore[arg-type]
            "tokens": asdict(bootstrap_mean([row["tokens"] for row in rows], groups, **settings)),  # type: ignore[arg-type]
            "finished": sum(row["finished"] for row in rows),
            "truncated": sum(not row["finished"] for row in rows),
            "empty": sum(not row["answer"].strip() for row in rows),
        }
    found["words_difference"] = asdict(
        bootstrap_mean(words[POLICY] - words[BASELINE], groups, **settings)  # type: ignore[arg-type]
    )
    return found
