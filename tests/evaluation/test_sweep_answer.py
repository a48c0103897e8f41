"""What a sweep's answer says: paired, only about what completed, widened for what was looked at, honest when noisy."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

from hostile import change_run, write_sweep_folder

from dpo.evaluation.paired import over_seeds, seeds_and_items
from dpo.evaluation.statistics import bootstrap_mean
from dpo.evaluation.sweep_answer import answer
from dpo.evaluation.sweep_choice import Criterion, choose_setting
from dpo.records.sweeps import read_sweep


def grid(*values: tuple[float, int, float, float]) -> list[tuple[dict[str, Any], float, float]]:
    return [({"dpo.beta": beta, "lora.rank": rank}, gain, kl) for beta, rank, gain, kl in values]


def test_one_seed_is_the_bootstrap_over_prompts_and_seeds_widen_it() -> None:
    rng = np.random.default_rng(0)
    items, groups = rng.normal(size=200), [i // 2 for i in range(200)]
    usual = bootstrap_mean(items, groups, 4000)
    mine = seeds_and_items(items[None], groups, 4000, 0.95, 0)
    assert (mine.low, mine.high) == pytest.approx((usual.low, usual.high), abs=0.02)
    seeds = items[None] + np.array([[-1.0], [0.0], [1.0]])
    wide = seeds_and_items(seeds, groups, 4000, 0.95, 0)
    assert wide.high - wide.low > 2 * (mine.high - mine.low)
    assert wide.value == pytest.approx(mine.value)


def test_the_interval_over_prompts_and_seeds_covers_what_it_says() -> None:
    """300 worlds of 8 seeds x 40 prompts, both with an effect of their own: 95% intervals must not cover less."""
    rng, hits = np.random.default_rng(1), 0
    for world in range(300):
        values = rng.normal(0, 0.5, (8, 1)) + rng.normal(0, 1, (1, 40)) + rng.normal(0, 0.5, (8, 40))
        found = seeds_and_items(values, range(40), 400, 0.95, world)
        hits += found.low <= 0 <= found.high
    assert hits >= 270


def test_the_t_interval_over_seeds_is_the_textbook_one() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.low == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3)


def criterion(name: str, *rates: float, n: int = 400) -> Criterion:
    """Answers of one fixed random order: a setting passes the first share of them."""
    ranks = np.random.default_rng(0).permutation(n) / n
    base = (ranks < 0.4).astype(float)
    return Criterion(
        name, True, [(ranks < rate).astype(float)[None] for rate in rates], [base[None]] * len(rates), range(n)
    )


def kl(*means: float, n: int = 60) -> list[Any]:
    noise = np.random.default_rng(3).normal(0, 0.1, n)
    return [np.array(mean + noise)[None] for mean in means]


def test_the_nearer_of_two_that_cannot_be_told_apart_is_taken_with_its_reason() -> None:
    found = choose_setting(
        ["far", "near", "weak"], [criterion("rules", 0.70, 0.69, 0.45)], kl(9.0, 3.0, 1.0), 0.95, 2000
    )
    assert found["label"] == "near"
    assert (
        "near: not distinguishable from the best, far, by rules (69% against 70%) at a third of its KL"
        in found["reason"]
    )
    assert [row["distinguishable"] for row in found["against_best"]] == [False, False, True]
    # The same answers at the same distance: nothing speaks for the other one.
    assert choose_setting(["a", "b"], [criterion("rules", 0.7, 0.69)], kl(3.0, 2.9), 0.95, 2000)["label"] == "a"
    # A real difference is worth its distance.
    assert choose_setting(["a", "b"], [criterion("rules", 0.8, 0.6)], kl(9.0, 3.0), 0.95, 2000)["label"] == "a"


def test_noise_is_not_recommended_and_a_weaker_criterion_is_named_as_a_hint() -> None:
    flat = criterion("rules", 0.40, 0.405)
    none = choose_setting(["a", "b"], [flat], kl(1.0, 2.0), 0.95, 2000)
    assert none["label"] is None
    assert none["reason"].startswith("No recommendation: by rules no setting beats the unaligned model beyond noise")
    hint = choose_setting(["a", "b"], [flat, criterion("reward accuracy", 0.9, 0.6)], kl(1.0, 2.0), 0.95, 2000)
    assert hint["label"] == "a"
    assert hint["reason"].startswith("By rules no setting beats the unaligned model beyond noise")
    assert "Take it as a hint" in hint["reason"]


def test_many_settings_of_pure_noise_seldom_get_one_recommended() -> None:
    """The best of nine coin flips beats a 95% interval often; widened for nine it must not."""
    rng, taken = np.random.default_rng(5), 0
    for _ in range(60):
        base = (rng.random((1, 80)) < 0.5).astype(float)
        noise = [(rng.random((1, 80)) < 0.5).astype(float) for _ in range(9)]
        found = choose_setting([str(i) for i in range(9)], [Criterion("j", True, noise, [base] * 9, range(80))],
                               [None] * 9, 0.95, 1000)  # fmt: skip
        taken += found["label"] is not None
    assert taken <= 9


def test_only_what_completed_is_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    root = write_sweep_folder(tmp_path / "s", grid((0.1, 8, 0.5, 2.0), (0.1, 16, 0.1, 1.0), (0.3, 8, 0.59, 9.0)))
    change_run(root / "job2", status="diverged", exit_code=5, reason="loss is not finite")
    shutil.rmtree(root / "job1")
    found = answer(read_sweep(root))
    assert [row["label"] for row in found["settings"]] == ["beta 0.1, rank 8"]
    assert [job["state"] for job in found["jobs"]] == ["complete", "waiting", "diverged"]
    # A diverged job that had been evaluated before shows none of those figures.
    assert found["jobs"][2]["accuracy"] is None
    assert found["choice"]["label"] == "beta 0.1, rank 8"
    assert found["axes"] == ["dpo.beta", "lora.rank"]


def test_seeds_of_a_setting_are_one_setting_with_an_interval(tmp_path: Path) -> None:
    jobs = [
        ({"dpo.beta": beta, "seed": seed}, gain, 1.0) for beta, gain in ((0.1, 0.5), (0.3, 0.1)) for seed in (0, 1, 2)
    ]
    found = answer(read_sweep(write_sweep_folder(tmp_path / "s", jobs)))
    assert [(row["label"], row["seeds"]) for row in found["settings"]] == [("beta 0.1", 3), ("beta 0.3", 3)]
    spread = found["settings"][0]["over_seeds"]["accuracy"]
    assert spread["low"] < spread["value"] < spread["high"]
    assert found["axes"] == ["dpo.beta"]
    assert found["choice"]["label"] == "beta 0.1"


def test_jobs_that_do_not_measure_the_same_are_not_compared(tmp_path: Path) -> None:
    root = write_sweep_folder(tmp_path / "s", [({"model.path": "a"}, 0.5, 1.0), ({"model.path": "b"}, 0.1, 1.0)])
    path = root / "job1" / "evaluation" / "test" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "other"}))
    found = answer(read_sweep(root))
    assert found["choice"]["label"] is None
    assert "other base weights" in found["choice"]["reason"]


def test_what_a_judge_left_undecided_in_one_job_is_compared_in_none(tmp_path: Path) -> None:
    root = write_sweep_folder(tmp_path / "s", grid((0.1, 8, 0.5, 2.0), (0.1, 16, 0.1, 1.0)))
    path = root / "job1" / "evaluation" / "test" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:10]:
        row["policy"]["verdicts"]["rules"]["outcome"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = answer(read_sweep(root))
    assert found["judges"]["rules"]["answers"] == 30
    assert found["settings"][0]["judges"]["rules"]["level"]["n"] == 30


def test_without_an_evaluation_the_dev_metrics_speak_and_say_so(tmp_path: Path) -> None:
    root = write_sweep_folder(tmp_path / "s", grid((0.1, 8, 0.5, 2.0), (0.1, 16, 0.1, 1.0)))
    for job in ("job0", "job1"):
        shutil.rmtree(root / job / "evaluation")
    found = answer(read_sweep(root))
    assert found["basis"] == "dev"
    assert {job["state"] for job in found["jobs"]} == {"not evaluated"}
    assert found["choice"]["reason"].startswith("No job was evaluated, so this rests on dev accuracy in training alone")
    assert "overlap with it" in found["choice"]["reason"]


def test_the_report_from_the_command_line_at_any_time(tmp_path: Path) -> None:
    hostile = {"model.path": "=cmd()\x1b[31m<script>", "lora.rank": 8}
    root = write_sweep_folder(tmp_path / "s", [(hostile, 0.5, 2.0), (hostile | {"lora.rank": 16}, 0.4, 1.0)])
    script = (
        f"import sys, dpo.report; sys.argv[1:] = ['sweep={root}']; dpo.report.main(); "
        "print('HEAVY', 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY False" in done.stdout
    assert "\x1b" not in done.stdout
    rows = list(csv.DictReader((root / "jobs.csv").open()))
    assert rows[0]["model.path"] == "'=cmd()<script>"
    assert float(rows[0]["kl_value"]) == 2.0
    assert json.loads((root / "answer.json").read_text())["choice"]["label"]
    assert (root / "report.html").is_file()
