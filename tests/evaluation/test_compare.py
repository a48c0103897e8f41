"""`dpo.compare`: refusals, figures against the baseline, the choice, and its files."""

from __future__ import annotations

import csv
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import estimate, write_run

from dpo import compare as verb
from dpo.compare import compare
from dpo.config.evaluation import Compare
from dpo.errors import ConfigError
from dpo.evaluation.comparing.choice import choose, unchosen
from dpo.evaluation.comparing.comparison import read_entries
from dpo.pages.ending import JUDGE


def _config(out: Path, *runs: Path) -> Compare:
    return Compare([str(run) for run in runs], "test", str(out), 500, 0.95, 0, 4)


def test_runs_against_the_baseline_and_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, same = write_run(tmp_path / "good" / "r", gain=0.55), write_run(tmp_path / "same" / "r", gain=0.0)
    out = compare(_config(tmp_path / "out", good, same))
    found = json.loads((out / "comparison.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["baseline", "good", "same"]
    judged = found["rows"][1]["judges"]["rules"]
    assert judged["wins"] + judged["ties"] + judged["losses"] == 40
    (pair,) = found["pairwise"]
    assert pair["judges"]["rules"]["difference"]["low"] > 0
    assert pair["judges"]["rules"]["wins"] > pair["judges"]["rules"]["losses"]
    assert found["choice"]["label"] == "good"
    assert found["same_baseline_answers"]
    assert found["rows"][1]["cost"]["money"] == 0.035
    printed = capsys.readouterr().out
    assert "good is better" in printed
    assert "\x1b" not in printed
    assert (out / "report.html").stat().st_size > 1_000_000
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert float(rows[1]["judges_rules_difference_value"]) == pytest.approx(judged["difference"]["value"])


def test_figures_of_judges_stand_beside_each_other_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def further(value: float) -> dict[str, Any]:
        ease = {"key": "ease", "label": "reading ease", "share": False, "policy": estimate(value, 2.0),
                "baseline": estimate(50, 3.0), "difference": estimate(value - 50, 4.0)}  # fmt: skip
        alike = {"key": "alike", "label": "judged alike in both orders", "share": True, "policy": estimate(0.9, 0.05)}
        never = {side: estimate(0.0, 0.0) for side in ("policy", "baseline", "difference")}
        none = {"key": "none", "label": "never seen", "share": False, **never}
        return {"tone": {"definition": "counts", "rows": [ease, alike, none]}}

    one, two = (write_run(tmp_path / name / "r", figures=further(v)) for name, v in (("one", 61.5), ("two", 44.0)))
    third = write_run(tmp_path / "third" / "r", figures={})
    out = compare(_config(tmp_path / "out", one, two, third))
    found = json.loads((out / "comparison.json").read_text())
    assert found["figures"]["tone"]["definition"] == "counts"
    base, first, second, other = (row["figures"]["tone"] for row in found["rows"])
    assert base["ease"]["level"]["value"] == 50
    assert (first["ease"]["level"]["low"], first["ease"]["difference"]["high"]) == (59.5, 15.5)
    assert second["ease"]["difference"]["value"] == -6
    assert base["alike"]["level"] is None
    assert other["ease"] == {"level": None, "difference": None}
    printed = " ".join(capsys.readouterr().out.split())
    body = html.unescape((out / "report.html").read_text().rpartition("<body>")[2][:20000])
    page = " ".join(body.replace("\xa0", " ").split())
    for text in (printed, page):
        for wanted in ("61.50 [59.50, 63.50]", "+11.50 [+7.50, +15.50]", "-6.00 [-10.00, -2.00]", "90% [85, 95]"):
            assert wanted in text
    assert "reading ease 50.00 [47.00, 53.00] 61.50 [59.50, 63.50] 44.00 [42.00, 46.00] -" in printed
    assert "never seen 0.00 [0.00, 0.00] 0.00 [0.00, 0.00] 0.00 [0.00, 0.00] -" in printed
    assert "61.5" in (out / "comparison.csv").read_text()


def test_hostile_names_are_only_text_on_a_terminal_and_in_a_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("=HYPERLINK(1)", "@SUM(A1)\x1b[31m\x1b]0;owned\x07", "+\u202egpj.exe[bold red]")
    runs = [write_run(tmp_path / name / "r", figures={name: {"definition": name, "rows": []}}) for name in names]
    out = compare(_config(tmp_path / "out", *runs))
    printed = capsys.readouterr().out
    assert not set("\x1b\x07\u202e") & set(printed)
    assert "[bold red]" in printed
    rows = list(csv.reader((out / "comparison.csv").open()))
    assert [row[0] for row in rows[2:]] == ["'=HYPERLINK(1)", "'@SUM(A1)", "'+gpj.exe[bold red]"]
    assert not [cell for row in rows for cell in row if re.match(r"[=@\t\r]|[+-](?![\d.])", cell)]


def test_one_run_alone_is_set_against_the_baseline(tmp_path: Path) -> None:
    out = compare(_config(tmp_path / "out", write_run(tmp_path / "a" / "r", gain=0.5)))
    found = json.loads((out / "comparison.json").read_text())
    assert found["pairwise"] == []
    assert found["choice"]["label"] == "a"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"held_out": "x"}, "other held-out pairs"),
        ({"base": "x"}, "other base weights"),
        ({"quantization": {"bits": 4}}, "other quantization"),
        ({"prompts": "x"}, "other prompts"),
        ({"settings": {"temperature": 0.1, "top_k": 50, "max_new_tokens": 80, "seed": 1, "samples_per_prompt": 1}},
         "temperature=0.1"),
    ],
)  # fmt: skip
def test_what_does_not_measure_the_same_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    one, other = write_run(tmp_path / "a" / "r"), write_run(tmp_path / "b" / "r", **change)
    with pytest.raises(ConfigError, match=said) as error:
        read_entries([one, other], "test")
    assert len(str(error.value).splitlines()) <= 3


def test_a_run_without_the_evaluation_says_how_to_make_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "r")
    with pytest.raises(ConfigError, match=r"no evaluation named long; it has test\n.*evaluation\.name=long"):
        read_entries([run], "long")
    with pytest.raises(ConfigError, match="named twice"):
        read_entries([run, run], "test")


def _row(label: str, level: float, gain: float, kl: float) -> dict[str, Any]:
    judged = {"level": estimate(level), "difference": estimate(gain, 0.1)}
    return {"label": label, "kl": estimate(kl), "judges": {"rules": judged}}


def _pair(first: str, second: str, gap: float) -> dict[str, Any]:
    return {"first": first, "second": second, "judges": {"rules": {"difference": estimate(gap, 0.1)}}}


def test_the_choice_prefers_the_nearer_of_two_that_cannot_be_told_apart() -> None:
    base = {"judges": {"rules": {"level": estimate(0.4)}}}
    far, near, weak = _row("far", 0.70, 0.3, 9.0), _row("near", 0.68, 0.28, 3.0), _row("weak", 0.5, 0.12, 1.0)
    pairs = [_pair("far", "near", 0.02), _pair("far", "weak", 0.2), _pair("near", "weak", 0.18)]
    chosen = choose([far, near, weak], pairs, "rules", True, base)
    assert chosen["label"] == "near"
    assert "33% of its KL" in chosen["reason"]
    assert chosen["alike"] == ["far", "near"]
    apart = [_pair("far", "near", 0.2), *pairs[1:]]
    assert choose([far, near, weak], apart, "rules", True, base)["label"] == "far"
    nothing = choose([_row("a", 0.42, 0.02, 1.0)], [], "rules", True, base)
    assert nothing["label"] is None
    assert "beyond noise" in nothing["reason"]


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([0.3, 0.4], "the best is a, 80% [70, 90], ahead of all others."),
        ([0.0, 0.4], "the best is a, 80% [70, 90], told apart from some."),
        ([0.0, 0.0], "the best is a, 80% [70, 90], told apart from none."),
        ([], ": a, 80% [70, 90]."),
    ],
)
def test_without_a_judge_the_pairs_have_the_word_and_no_run_is_chosen(gaps: list[float], said: str) -> None:
    rows = [{"label": label, "accuracy": estimate(0.8 - 0.1 * i)} for i, label in enumerate("abc"[: len(gaps) + 1])]
    pairs = [{"first": "a", "second": "bc"[i], "accuracy": estimate(gap)} for i, gap in enumerate(gaps)]
    found = unchosen(rows, pairs)
    assert found["label"] is None
    assert found["reason"].endswith(said)


def test_the_command_line_takes_folders_and_stays_light(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name / "r")) for name in ("a", "b")]
    script = (
        f"import sys, dpo.compare; sys.argv[1:] = {[*runs, 'resamples=200']!r}; dpo.compare.main(); "
        "print('HEAVY', 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY False" in done.stdout
    assert list((tmp_path / "outputs" / "comparisons").glob("*/report.html"))
    assert "\nnext: python -m dpo." in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "dpo.compare", runs[0], "/nowhere"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "runs=/nowhere: no such run" in wrong.stderr


@pytest.mark.parametrize(
    ("taken", "judged", "commands"),
    [
        (["b c"], True, ["chat 'b c'", "export 'b c'"]),
        ([], False, [f"judge a {JUDGE}", f"judge 'b c' {JUDGE}", "compare a 'b c'"]),
        ([], True, ["evaluate a evaluation.samples_per_prompt=4 evaluation.name=more",
                    "evaluate 'b c' evaluation.samples_per_prompt=4 evaluation.name=more",
                    "compare a 'b c' name=more"]),
    ],
)  # fmt: skip
def test_whatever_is_found_it_ends_with_what_comes_next(taken: list[str], judged: bool, commands: list[str]) -> None:
    found = verb._next([Path(word) for word in taken], [Path("a"), Path("b c")], judged)
    assert found == [f"next: python -m dpo.{command}" for command in commands]


def test_report_of_a_run_from_the_command_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "r")
    done = subprocess.run(
        [sys.executable, "-m", "dpo.report", str(run)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()
    assert done.stdout.strip() == str(run / "report.html")
    (empty := tmp_path / "empty").mkdir()
    wrong = subprocess.run(
        [sys.executable, "-m", "dpo.report", str(empty)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert wrong.returncode == 2
    assert "not a run directory" in wrong.stderr
