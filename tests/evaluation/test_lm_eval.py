"""lm-eval's tasks on both sides of a run trained for real, with a local task; hub tasks without a hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from asked import asked

from dpo.errors import ConfigError, DataError, NetworkError
from dpo.evaluation.judges.table import build_judges
from dpo.evaluation.measure import measure
from dpo.evaluation.sides import load_sides
from dpo.records.headline import figure_rows
from dpo.records.read import json_file

pytest.importorskip("lm_eval")

QUESTIONS = [("the cat", ["sat", "dog"], 0), ("red dog", ["blue", "ran"], 1), ("a big", ["tree", "sat"], 0)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a multiple-choice task of its own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ends.yaml").write_text(f"""
task: sentence_ends
dataset_path: json
dataset_kwargs: {{data_files: {{test: '{folder / "rows.jsonl"}'}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    return folder


def _right(model: torch.nn.Module, tokenizer: object) -> list[bool]:
    """Whether each question's right choice is the likeliest, by hand."""
    found = []
    for question, choices, answer in QUESTIONS:
        scores = []
        for choice in choices:
            ids = tokenizer(f"{question} {choice}")["input_ids"]  # type: ignore[operator]
            start = len(tokenizer(question)["input_ids"])  # type: ignore[operator]
            with torch.no_grad():
                rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
            scores.append(sum(float(rows[i - 1, ids[i]]) for i in range(start, len(ids))))
        found.append(max(range(2), key=lambda i: scores[i]) == answer)
    return found


def _local(tasks: Path, *more: str) -> list[str]:
    return ["judge=[rules,lm_eval]", "judge.lm_eval.tasks=[sentence_ends]", f"judge.lm_eval.include='{tasks}'", *more]


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        build_judges(asked(tmp_path, "judge=[lm_eval]", "judge.lm_eval.include=/no/where").judge)
    with pytest.raises(ConfigError, match="at least one"):
        build_judges(asked(tmp_path, "judge=[lm_eval]", "judge.lm_eval.tasks=[]").judge)
    with pytest.raises(ConfigError, match=r"judge\.lm_eval\.limit=0"):
        asked(tmp_path, "judge=[lm_eval]", "judge.lm_eval.limit=0")


@pytest.mark.slow
def test_both_sides_answer_a_local_task(run: Path, tasks: Path) -> None:
    folder = measure(asked(run, *_local(tasks, "judge.lm_eval.few_shots=0")))
    summary = json_file(folder / "summary.json")
    (row,) = summary["figures"]["lm_eval"]["rows"]
    sides = load_sides(run)
    for side in ("policy", "baseline"):
        with sides.use(side) as model:
            right = _right(model, sides.tokenizer)
        mean = sum(right) / 3
        error = (mean * (1 - mean) / 2) ** 0.5
        assert row[side]["value"] == pytest.approx(mean)
        assert row[side]["high"] == pytest.approx(mean + 1.96 * error, abs=1e-3)
        assert row[side]["n"] == 3
    assert row["share"]
    assert any(cells[0] == "sentence_ends acc" for cells in figure_rows(summary))

    # What is measured is kept; other questions are another measurement.
    written = (folder / "benchmarks.jsonl").read_text()
    measure(asked(run, *_local(tasks, "judge.lm_eval.few_shots=0", "judge.lm_eval.batch_size=2")))
    assert (folder / "benchmarks.jsonl").read_text() == written
    measure(asked(run, *_local(tasks, "judge.lm_eval.limit=2", "judge.lm_eval.chat_template=true")))
    (row,) = json_file(folder / "summary.json")["figures"]["lm_eval"]["rows"]
    assert row["policy"]["n"] == 2


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_before_anything_is_drawn(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="does not answer") as error:
        build_judges(asked(run, "judge=[lm_eval]", "judge.lm_eval.tasks=[arc_easy]").judge)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 8
    with pytest.raises(ConfigError, match="nearest: sentence_ends"):
        build_judges(asked(run, *_local(tasks), "judge.lm_eval.tasks=[sentense_ends]").judge)
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        build_judges(asked(run, *_local(tasks)).judge)
