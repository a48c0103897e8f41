"""Further judges over an evaluation that is there: nothing drawn again, earlier judges kept, tables still told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from asked import asked

from dpo.config.evaluation import Compare, JudgeAnswers, Report, register
from dpo.evaluation.judge_run import judge_run
from dpo.evaluation.judges.interface import Item, Judge, Verdict, mean_of
from dpo.evaluation.measure import measure
from dpo.pages.headline import figure_rows, notes
from dpo.records.read import json_file, json_lines


class Short(Judge):
    name, label, definition, fingerprint = "short", "short answers", "under five words", "1"
    figures = (mean_of("words", "words by short"),)

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        for item in items:
            words = len(item.answer.split())
            yield [Verdict(item.id, -float(words), words < 5, "long", 0.0, "test", {"words": words})]


def test_a_judge_is_added_without_drawing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    folder = measure(asked(run))
    before, answers = json_file(folder / "summary.json"), (folder / "answers.jsonl").read_bytes()
    again = judge_run(run, "test", [Short()], {"resamples": 200, "confidence": 0.95, "seed": 0})
    assert again == folder
    assert (folder / "answers.jsonl").read_bytes() == answers
    after = json_file(folder / "summary.json")
    assert after["judges"]["rules"] == before["judges"]["rules"]
    samples = json_lines(folder / "samples.jsonl")
    words = [len(sample["policy"]["answer"].split()) for sample in samples]
    assert after["judges"]["short"]["policy"]["value"] == pytest.approx(sum(w < 5 for w in words) / len(words))
    assert after["figures"]["short"]["rows"][0]["policy"]["value"] == pytest.approx(sum(words) / len(words))
    assert all(set(sample[side]["verdicts"]) == {"rules", "short"} for sample in samples for side in sample
               if side in ("policy", "baseline"))  # fmt: skip
    assert {row["judge"] for row in json_lines(folder / "verdicts.jsonl")} == {"rules", "short"}
    assert "words by short" in {row[0] for row in figure_rows(after)}
    assert any(line.startswith("judge short: under five words") for line in notes(after))


@pytest.mark.parametrize(("verb", "schema"), [("judge", JudgeAnswers), ("compare", Compare), ("report", Report)])
def test_another_evaluation_can_be_named(verb: str, schema: type, compose_verb: Callable[..., Any]) -> None:
    # A key called `evaluation` would be taken for the group of that name, and could not be set.
    register()
    run = "runs=[x]" if verb == "compare" else "run=x"
    assert compose_verb(verb, schema, run, "name=long").name == "long"
