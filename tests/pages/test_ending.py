"""Verbs end with what was found, what warns against it, and commands that come next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hostile import write_run

from dpo.evaluation.comparing.comparison import compare, read_entries
from dpo.pages import ending
from dpo.pages.findings import findings
from dpo.records.files import write_sealed
from dpo.records.overview import run_status
from dpo.records.read import read_run, read_summary


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "it's a run")


def test_training_ends_with_the_dev_pairs_and_their_interval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ending.end_training(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "on 10 dev pairs the loss fell from 0.690 to 0.490" in said
    assert "gained on the rejected one in 90% [60, 98] of them" in said
    assert f"next: python -m dpo.evaluate {shlex.quote(str(run))}" in said
    assert (run / "report.html").exists()


def test_without_held_out_pairs_it_promises_nothing(run: Path) -> None:
    found = read_run(run)
    found.dev.clear()
    found.data["kept"] |= {"dev": 0, "test": 0}
    assert "no dev pairs were held out" in ending.trained(found)
    assert not any("evaluate" in line for line in ending.after_training(found, page=True))


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [
        (0.1, 0.3, "better than before by rules: "),
        (-0.1, 0.3, "not told apart from"),
        (-0.3, -0.1, "worse than before"),
    ],
)
def test_evaluation_ends_with_the_first_judge_that_decides(run: Path, low: float, high: float, begins: str) -> None:
    summary: Any = read_summary(run, "test")
    summary["judges"]["rules"]["difference"] |= {"low": low, "high": high}
    assert ending.evaluated(summary, ["rules"]).startswith(begins)


def test_few_prompts_or_pairs_give_no_verdict(run: Path) -> None:
    summary: Any = read_summary(run, "test")
    summary["judges"]["rules"]["difference"] |= {"low": 0.1, "high": 0.3, "n": 7}
    said = ending.evaluated(summary, ["rules"])
    assert said.startswith("no verdict by rules: ")
    assert said.endswith("over 7 prompts; 7 prompts are too few to say.")
    summary["pairs"]["pairs"] = 7
    assert "; 7 pairs are too few to say. No judge" in ending.evaluated(summary, [])
    found = read_run(run)
    for count, few in ((1, "1 dev pair is"), (3, "3 dev pairs are")):
        found.data["kept"]["dev"] = count
        assert ending.trained(found).endswith(f"of them; {few} too few to say.")
    found.data["kept"]["dev"] = 20
    assert ending.trained(found).endswith("of them.")


def test_evaluation_without_a_judge_that_decides_says_so(run: Path) -> None:
    summary: Any = read_summary(run, "test")
    summary["judges"] = {}
    said = ending.evaluated(summary, [])
    assert said.startswith("on 40 held-out pairs the chosen answer gained")
    assert "llm, reward_model, human could" in said


def test_the_rule_of_the_shipped_rows_is_no_headline_for_others(tmp_path: Path) -> None:
    summary: Any = read_summary(write_run(tmp_path / "r", gain=0.5), "test")
    assert ending.evaluated(summary, ["rules"]).startswith("better than before by rules")
    said = ending.evaluated(summary, [])
    assert said.startswith("on 40 held-out pairs")
    assert "Judge rules does not count" in said
    score = summary["judges"]["rules"] | {"label": "reward", "decides": False}
    summary["judges"]["reward_model"] = score
    assert "by reward_model: reward 0.40 [" in ending.evaluated(summary, ["reward_model"])


def _of_others(folder: Path) -> Path:
    """A run on rows that the rule of the shipped ones says nothing about, though it judged them."""
    run = write_run(folder, gain=0.5)
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps(config | {"dataset": {"source": "local", "judges": ["tone"]}}))
    return run


def test_nowhere_is_that_rule_the_headline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate's end, the page's findings, status, compare."""
    monkeypatch.chdir(tmp_path)
    run, other = _of_others(tmp_path / "a" / "r"), _of_others(tmp_path / "b" / "r")
    found = findings(read_run(run), read_summary(run, "test"))
    assert not [one.name for one in found if "rules" in one.name]
    assert next(one for one in found if one.name == "Judged answers").words.startswith("No judge that fits")
    assert not [line for one in found for line in one.evidence if "by rules" in line]
    assert run_status(run).evaluated == "accuracy 60%"
    summary: Any = read_summary(run, "test")
    summary["pairs"]["accuracy"] |= {"value": 1.0, "low": 0.51, "high": 1.0, "n": 4}
    write_sealed(run / "evaluation" / "test" / "summary.json", summary)
    assert run_status(run).evaluated == "accuracy 100% [51, 100]"
    ending.end_evaluation(run, "test")
    assert f"next: python -m dpo.judge {run} 'judge=[llm]' judge.llm.server" in capsys.readouterr().out
    entries = read_entries([run, other], "test")
    compared = compare(entries, 200, 0.95, 0)
    assert (compared["judge"], compared["choice"]["label"]) == (None, None)
    assert "No judge that fits" in compared["choice"]["reason"]
    assert "rules" in compared["judges"], "what it measured stands there all the same"
    mixed = read_entries([run, write_run(tmp_path / "c" / "r")], "test")
    assert compare(mixed, 200, 0.95, 0)["judge"] is None


def test_cut_answers_are_said_with_the_key_to_change(run: Path) -> None:
    summary: Any = read_summary(run, "test")
    assert ending.cut(summary) == []
    summary["answers"]["policy"]["truncated"] = 31
    more = "evaluation.max_new_tokens=160 evaluation.name=test-160 lets them end"
    assert ending.cut(summary) == [f"31 of 40 answers were cut at 80 tokens; {more}"]


def test_what_the_page_warns_of_the_terminal_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary: Any = read_summary(run, "test")
    for side in ("chosen", "rejected"):
        summary["pairs"][f"{side}_log_ratio"] = {"value": -9.0, "low": -10.0, "high": -8.0, "n": 20}
    monkeypatch.setattr(ending, "read_summary", lambda folder, name: summary)
    ending.end_evaluation(run, "test")
    assert "warning: Likelihood displacement: Both chosen and rejected" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_takes_nothing_from_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").mkdir()
    ending.end_training(run)
    said = capsys.readouterr()
    assert "report.html was not written" in said.err
    assert "dev pairs" in said.out


def test_a_run_is_done_whatever_its_ending_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (run / "ledger.json").write_text("{")
    ending.end_training(run)
    assert "what was found cannot be read" in capsys.readouterr().err
