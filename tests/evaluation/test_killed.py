"""Real kill -9: of a training run, as status and the ledger see it, and of an evaluation while it scores and draws."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from asked import asked

from dpo.compare import compare
from dpo.config.evaluation import Compare
from dpo.evaluation.measure import measure
from dpo.records.overview import run_status
from dpo.records.read import json_file, json_lines


def _ledger(folder: Path) -> dict[str, Any]:
    return json_file(folder / "ledger.json")["phases"]


def test_a_killed_run_is_called_killed_and_its_attempts_are_paid_for(tmp_path: Path) -> None:
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 60)
    command = tiny.arguments(
        model, pairs, "dataset.test_fraction=0.4", "hardware.precision=fp32", "hardware.hourly_rate=3600"
    )
    code, output = tiny.run("train", command, tmp_path, ("step", 6, tiny.KILL))
    assert code == -signal.SIGKILL, output
    folder, record = tiny.record(tmp_path)
    assert record["status"] == "running", "the file still says so"
    status = run_status(folder)
    assert (status.state, status.max_steps, status.eta) == ("killed", 8, None)
    assert "the same command continues it" in status.note
    first = _ledger(folder)
    assert first["train"]["pairs"] >= 12

    code, output = tiny.run("train", command, tmp_path)
    assert code == 0, output
    assert run_status(folder).state == "complete"
    both = _ledger(folder)
    for phase in ("load", "train"):
        assert both[phase]["seconds"] > first[phase]["seconds"] > 0
    # The first attempt's steps 1 to 3, saved at 3, and those of the second from there on; a step 4 or 5 that was done
    # twice may stand twice.
    assert both["train"]["pairs"] >= 4 * 8

    measure(asked(folder))
    out = compare(Compare([str(folder)], "test", str(tmp_path / "out"), 200, 0.95, 0, 2))
    cost = json.loads((out / "comparison.json").read_text())["rows"][1]["cost"]
    assert (cost["attempts"], cost["unfinished_attempts"]) == (2, 1)
    ledger = json_file(folder / "ledger.json")
    phases = _ledger(folder)
    assert ledger["seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases.values()))
    # Both attempts' training, without what measuring it took.
    trained = sum(phase["seconds"] for name, phase in phases.items() if name != "evaluate")
    assert cost["money"] == pytest.approx(trained + cost["saved_seconds"])
    assert cost["evaluation_seconds"] == phases["evaluate"]["seconds"] > 0


def test_an_evaluation_killed_while_scoring_and_while_drawing_ends_the_same(run: Path, tmp_path: Path) -> None:
    settings = ["evaluation.batch_size=2", "evaluation.divergence_prompts=4"]
    undisturbed = measure(asked(Path(shutil.copytree(run, tmp_path / "undisturbed")), *settings))
    small = ["evaluation.prompts=6", "evaluation.max_new_tokens=8", "evaluation.resamples=200", "evaluation.show=0"]
    folder = run / "evaluation" / "test"

    def evaluate(at: tuple[str, int, int] | None) -> int:
        return tiny.run("evaluate", [f"run={run}", *small, *settings], tmp_path, at)[0]

    assert evaluate(("rows", 1, tiny.KILL)) == -signal.SIGKILL
    assert not (folder / "answers.jsonl").is_file()
    assert evaluate(("rows", 4, tiny.KILL)) == -signal.SIGKILL
    drawn = json_lines(folder / "answers.jsonl")
    assert 0 < len(drawn) < 12
    assert not (folder / "summary.json").is_file()
    assert evaluate(None) == 0
    assert json_lines(folder / "answers.jsonl")[: len(drawn)] == drawn, "nothing drawn is drawn again"
    for name in ("samples.jsonl", "verdicts.jsonl"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    mine, theirs = (json_file(path / "summary.json") for path in (folder, undisturbed))
    assert (mine["answers"], mine["judges"]) == (theirs["answers"], theirs["judges"])
    for key in ("accuracy", "margin", "chosen_log_ratio"):
        assert mine["pairs"][key]["value"] == pytest.approx(theirs["pairs"][key]["value"], abs=1e-5)
    assert mine["divergence"]["per_answer"]["value"] == pytest.approx(theirs["divergence"]["per_answer"]["value"])
