"""Further judges over an evaluation that is there: its answers are read, not drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo.data.sources.messages import messages
from dpo.evaluation.answers import Prompt
from dpo.evaluation.folder import EvaluationFolder
from dpo.evaluation.judges.interface import AnyJudge, Benchmark, ranks
from dpo.evaluation.judging import SHOWN, judge_all, measure_all, summarise_judges
from dpo.evaluation.sides import SIDES, load_sides
from dpo.records.files import write_sealed
from dpo.records.read import read_samples, read_summary

Row = dict[str, Any]


def judge_run(run: Path, evaluation: str, judges: Sequence[AnyJudge], interval: Row) -> Path:
    """Judge the samples of `run`'s evaluation and put what was found beside what its summary and samples hold.

    Returns the evaluation's folder, whose tables and reports show the new judges from then on.
    """
    summary, samples = read_summary(run, evaluation), read_samples(run, evaluation)
    folder = EvaluationFolder(run / "evaluation" / evaluation)
    prompts = {row["prompt"]: _prompt(row) for row in samples}
    answers = [
        {"side": side, "prompt": row["prompt"], "sample": row["sample"], **row[side]}
        for side in SIDES
        for row in samples
    ]
    with folder.locked():
        folder.check()
        judged = judge_all(folder, judges, prompts, answers)
        benchmarks = [judge for judge in judges if isinstance(judge, Benchmark)]
        measured = measure_all(folder, benchmarks, load_sides(run)) if benchmarks else []
        for judgement in judged:
            if ranks(judgement.judge):
                for answer, verdict in zip(answers, judgement.sides, strict=True):
                    answer["verdicts"][judgement.judge.name] = {key: getattr(verdict, key) for key in SHOWN}
        found = summarise_judges(answers, judged, measured, prompts, interval)
        names = {judge.name for judge in judges}
        for part, entries in found.items():
            kept = {name: entry for name, entry in summary[part].items() if name not in names}
            summary[part] = kept | entries
        folder.rewrite("samples", samples)
        write_sealed(folder.path / "summary.json", summary | {"rows": folder.marks()})
    return folder.path


def _prompt(row: Row) -> Prompt:
    turns, tools = tuple(messages(row["messages"], "messages")), row.get("tools", "")
    # Evaluations of earlier versions hold neither group nor meta.
    return Prompt(row["prompt"], turns, [], row["subject"], row.get("group"), row.get("meta") or {}, tools)
