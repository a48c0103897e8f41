"""lm-eval's tasks on both sides of a run trained for real, with a local task; hub tasks without a hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from asked import asked

from dpo.errors import ConfigError, DataError, NetworkError
from dpo.evaluation.judges.interface import Measured
from dpo.evaluation.judges.table import build_judges
from dpo.evaluation.judging import _before_and_after
from dpo.evaluation.measure import measure
from dpo.evaluation.sides import load_sides
from dpo.pages.headline import figure_rows
from dpo.records.read import json_file
from dpo.statistics.intervals import wilson
from dpo.statistics.paired import paired_shares

pytest.importorskip("lm_eval")

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}
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


def test_what_is_no_mean_over_questions_keeps_its_errors() -> None:
    def side(value: float, values: list[float] | None) -> list[Measured]:
        return [Measured("k", "task", value, 0.1, 4, False, True, values)]

    (row,) = _before_and_after({"policy": side(0.5, None), "baseline": side(0.25, [0, 0, 0, 1])}, INTERVAL)
    assert row["difference"]["high"] - 0.25 == pytest.approx(1.96 * (0.1**2 + 0.1**2) ** 0.5, abs=1e-3)
    graded = [0.2, 0.4, 0.6, 0.8]
    shifted = [value + 0.1 for value in graded]
    (row,) = _before_and_after({"policy": side(0.6, shifted), "baseline": side(0.5, graded)}, INTERVAL)
    # Each question gains the same: paired, nothing is left to chance, although the levels vary.
    assert row["difference"]["high"] - row["difference"]["low"] == pytest.approx(0)
    assert row["policy"]["high"] - row["policy"]["low"] > 0.1


@pytest.mark.slow
def test_both_sides_answer_a_local_task(run: Path, tasks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = measure(asked(run, *_local(tasks, "judge.lm_eval.few_shots=0")))
    summary = json_file(folder / "summary.json")
    (row,) = summary["figures"]["lm_eval"]["rows"]
    sides = load_sides(run)
    right = {}
    for side in ("policy", "baseline"):
        with sides.use(side) as model:
            right[side] = _right(model, sides.tokenizer)
        by_hand = wilson(sum(right[side]), 3)
        assert (row[side]["value"], row[side]["high"], row[side]["n"]) == pytest.approx(
            (by_hand.value, by_hand.high, 3)
        )
    paired = paired_shares(right["policy"], right["baseline"], 0.95)
    assert row["difference"]["low"] == pytest.approx(paired.low)
    assert row["difference"]["low"] < row["difference"]["value"] < row["difference"]["high"]
    assert row["share"]
    # The bars and notices of lm-eval, datasets and git stay off the terminal.
    err = capfd.readouterr().err
    assert not [word for word in ("requests:", "Generating", "fatal", "it/s") if word in err], err
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
