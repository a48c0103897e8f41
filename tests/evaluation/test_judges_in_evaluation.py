"""People, a language model and a reward model judge the answers of a run trained for real, through `dpo.evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("openai", reason="the openai client is not installed: pip install 'dpo-train[endpoint]'")


from asked import asked
from judge_server import JudgeServer, shown

from dpo.evaluation.judges.human.sheet import read_sheets
from dpo.evaluation.measure import measure
from dpo.pages.headline import figure_rows, notes
from dpo.records.read import json_file, json_lines


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    started = JudgeServer()
    yield started
    started.close()


def _reward_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tiny.make_model(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.num_labels = 1
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_all_three_judge_and_what_they_find_is_recorded(run: Path, server: JudgeServer, tmp_path: Path) -> None:
    overrides = [
        "judge=[llm,human,reward_model]", "evaluation.samples_per_prompt=1",
        f"judge.llm.server.base_url='{server.url}'", "judge.llm.server.model=m", "judge.llm.server.price_in=3.0",
        f"judge.human.folder='{tmp_path / 'human'}'",
        f"judge.reward_model.path='{_reward_model(tmp_path / 'reward')}'",
    ]  # fmt: skip
    folder = measure(asked(run, *overrides))
    summary = json_file(folder / "summary.json")
    answers = {(a["side"], a["prompt"]): a["answer"] for a in json_lines(folder / "answers.jsonl")}
    words = {key: len(answer.split()) for key, answer in answers.items()}
    prompts = sorted({prompt for _, prompt in answers})

    # The language model prefers more words: wins and losses are those of the counts.
    gaps = [words["policy", p] - words["baseline", p] for p in prompts]
    judged = summary["judges"]["llm"]
    assert (judged["wins"], judged["losses"]) == (sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
    compared = sum(len(shown(body)[1]) == 2 for body in server.requests)
    assert judged["cost"] == pytest.approx(compared * 300 / 1e6)
    figures = {row["key"] for row in summary["figures"]["llm"]["rows"]}
    assert {"consistent", "first_shown"} <= figures
    assert {"harmlessness", "tone"} <= {row["key"] for row in summary["figures"]["llm_rubric"]["rows"]}
    assert 1 <= summary["judges"]["llm_rubric"]["policy"]["value"] <= 10
    assert summary["judges"]["reward_model"]["wins"] + summary["judges"]["reward_model"]["ties"] <= len(prompts)
    assert not summary["judges"]["reward_model"]["decides"]

    # People have been given a sheet, and until it comes back they have said nothing.
    assert "human" not in summary["judges"]
    assert summary["undecided"]["human"]["reasons"] == {"not rated yet": summary["undecided"]["human"]["count"]}
    (sheet,) = read_sheets(tmp_path / "human")
    ratings: list[dict[str, Any]] = [
        {"row": row.row, "preference": "1", "helpfulness_1": 8, "helpfulness_2": 3} for row in sheet.rows
    ]
    (sheet.ratings / "ann.json").write_text(json.dumps({"sheet": sheet.name, "rater": "ann", "ratings": ratings}))
    asked_before = server.tries
    measure(asked(run, *overrides))
    summary = json_file(folder / "summary.json")
    human = summary["judges"]["human"]
    assert human["wins"] + human["losses"] == len(sheet.rows)
    assert human["ties"] == len(prompts) - len(sheet.rows)
    assert 3 <= summary["judges"]["human_helpfulness"]["policy"]["value"] <= 8
    assert server.tries == asked_before
    assert any(row[0] == "preferred by people" for row in figure_rows(summary))
    assert any("rated by 1 rater; agreement needs two" in line for line in notes(summary))
    rows = [r for r in json_lines(folder / "verdicts.jsonl") if r["judge"] == "llm_rubric"]
    assert {r["cost"] for r in rows} == {300 / 1e6}
