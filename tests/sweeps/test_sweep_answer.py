"""What a sweep's answer says: paired, only about what completed, widened for what was looked at, honest when noisy."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hostile import change_run, write_sweep_folder

from dpo.records.files import write_sealed
from dpo.records.rows import Running
from dpo.statistics.intervals import bootstrap_mean
from dpo.statistics.paired import over_seeds, seeds_and_items
from dpo.sweeps.answer import answer
from dpo.sweeps.choice import Criterion, choose_setting, widened
from dpo.sweeps.files import read_sweep
from dpo.sweeps.plots import sweep_plots
from dpo.sweeps.report import report_sweep


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


PROMPTS = 60
# Nine settings: true gain over the start (share of answers), true KL (nats).
WORLDS = {
    "nothing works": ([0.0] * 9, [1.0] * 9),
    "all the same, at different distances": ([0.2] * 9, [0.5] * 3 + [1.0] * 3 + [4.0] * 3),
    "a slope": ([0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.22, 0.22], [0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 6.0]),
    "one peak": ([0.05] * 4 + [0.35] + [0.05] * 4, [0.2, 0.3, 0.4, 0.6, 2.0, 1.0, 1.5, 2.0, 6.0]),
}


def world(rng: np.random.Generator, gains: list[float], nats: list[float]) -> tuple[list[Criterion], list[Any]]:
    """Two answers a prompt; prompts differ in how hard they are, and all settings share the draw's random numbers."""
    groups = [i // 2 for i in range(2 * PROMPTS)]
    shared = np.repeat(rng.normal(0, 0.8, PROMPTS), 2) + rng.normal(0, 1, 2 * PROMPTS)

    def passed(rate: float) -> Any:
        own = shared + rng.normal(0, 0.6, 2 * PROMPTS)
        return (own < NormalDist(0, (0.64 + 1 + 0.36) ** 0.5).inv_cdf(rate)).astype(float)[None]

    base = passed(0.35)
    rules = Criterion("rules", True, [passed(0.35 + gain) for gain in gains], [base] * 9, groups)
    right = [(rng.random((1, 150)) < 0.5 + gain).astype(float) for gain in gains]
    accuracy = Criterion("reward accuracy", True, right, [np.full_like(r, 0.5) for r in right], range(150))
    return [rules, accuracy], [rng.gamma(4, nat / 4, (1, 32)) for nat in nats]


@pytest.mark.parametrize(("name", "worlds"), [(n, 6) for n in WORLDS] + [
    pytest.param(n, 200, marks=pytest.mark.slow) for n in WORLDS])  # fmt: skip
def test_on_planted_truth_it_is_right_or_says_it_cannot_tell(name: str, worlds: int) -> None:
    """Each claim is wrong in at most 5% of worlds: the bound is what 5% exceeds once in a thousand tests."""
    gains, nats = WORLDS[name]
    rng = np.random.default_rng(7)
    recommended = wrong = lost = farther = worse = 0
    for _ in range(worlds):
        criteria, distances = world(rng, gains, nats)
        found = choose_setting([str(i) for i in range(9)], criteria, distances, 0.95, 2000)
        if found["label"] is None:
            continue
        taken, best = int(found["label"]), int(found["best"])
        recommended += 1
        wrong += gains[taken] <= 0
        lost += not {str(i) for i, gain in enumerate(gains) if gain == max(gains)} & set(found["alike"])
        farther += taken != best and nats[taken] >= nats[best]
        # "It may be up to N points behind" must hold for the setting that was taken.
        gap = next(row["behind_best"] for row in found["against_best"] if row["label"] == found["label"])
        worse += gap is not None and gains[best] - gains[taken] > gap["high"]
    allowed = next(k for k in range(worlds + 1) if 1 - binomial(k, worlds, 0.05) < 1e-3)
    assert max(wrong, lost, farther, worse) <= allowed, (wrong, lost, farther, worse)
    # And where there is something to find, it is found.
    assert recommended == worlds or name == "nothing works"


def binomial(most: int, trials: int, chance: float) -> float:
    """P(at most so many)."""
    return sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(most + 1))


def test_picking_the_best_of_many_is_paid_for_over_settings_and_criteria() -> None:
    assert widened(0.95, 1, 1) == 0.95
    assert widened(0.95, 9, 2) == pytest.approx(1 - 0.05 / 9)
    assert widened(0.95, 9, 4) == pytest.approx(1 - 0.05 / 18)


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


DAMAGES = {
    "metrics.jsonl": lambda text: text.replace("0.6", "0.5", 1),
    "run.json": lambda text: text[:-9],
    "ledger.json": lambda text: text.replace("63.0", "93.0") + " ",
    "evaluation/test/summary.json": lambda text: text.replace("0.4", "0.9", 1),
    "evaluation/test/samples.jsonl": lambda text: text[: text.find("\n") + 1],
    "evaluation/test/pairs.jsonl": lambda text: "",
}


@pytest.mark.parametrize("file", DAMAGES)
def test_a_job_with_damaged_files_is_named_and_leaves_the_others_alone(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sweep_folder(tmp_path / "s", grid((0.1, 8, 0.5, 2.0), (0.1, 16, 0.1, 1.0), (0.3, 8, 0.59, 9.0)))
    job = root / "job2"
    rows = {name: Running((job / f"evaluation/test/{name}.jsonl").read_bytes()).mark() for name in ("pairs", "samples")}
    for path, more in (
        (job / "run.json", {"metrics": Running((job / "metrics.jsonl").read_bytes()).mark(), "id": "a"}),
        (job / "ledger.json", {"run": "a"}),
        (job / "data.json", {"run": "a"}),
        (job / "evaluation/test/summary.json", {"run": "a", "rows": rows}),
    ):
        write_sealed(path, json.loads(path.read_text()) | more)
    assert {found.state for found in read_sweep(root).jobs} == {"complete"}
    damaged = job / file
    damaged.write_text(DAMAGES[file](damaged.read_text()))
    report_sweep(root)
    found = json.loads((root / "answer.json").read_text())
    assert [(job["state"], job["exit_code"]) for job in found["jobs"]] == [("complete", 0)] * 2 + [("damaged", 4)]
    assert len(found["settings"]) == 2
    assert f"beta 0.3, rank 8: damaged (exit 4): {file}: " in " ".join(capsys.readouterr().out.split())


def test_a_grid_whose_part_failed_as_a_whole_is_still_drawn(tmp_path: Path) -> None:
    jobs = [
        ({"dpo.beta": beta, "lora.rank": rank, "dataset.path": path}, 0.3, 1.0)
        for beta in (0.1, 0.3) for rank in (8, 16) for path in ("a", "b")
    ]  # fmt: skip
    root = write_sweep_folder(tmp_path / "s", jobs)
    for number in (1, 3, 5, 7):
        change_run(root / f"job{number}", status="diverged", exit_code=5, reason="loss is not finite")
    figures, _ = sweep_plots(answer(read_sweep(root)))
    assert {key for key in figures if key.startswith("sweep-accuracy")} == {"sweep-accuracy-0"}


def test_keys_that_another_one_decides_are_no_axis(tmp_path: Path) -> None:
    """As a list of experiments: each is other values of several keys, and one key tells them all apart."""
    jobs = [({"model.path": model, "lora.rank": rank, "lora.alpha": alpha}, 0.3, 1.0)
            for model, rank, alpha in (("m", 2, 1), ("m", 4, 2), ("n", 4, 3))]  # fmt: skip
    assert answer(read_sweep(write_sweep_folder(tmp_path / "s", jobs)))["axes"] == ["lora.alpha"]


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


def test_jobs_that_do_not_measure_the_same_are_compared_only_within_their_kind(tmp_path: Path) -> None:
    jobs = [({"dataset.path": path, "lora.rank": rank}, gain, 1.0)
            for path, rank, gain in (("a", 8, 0.5), ("a", 16, 0.1), ("b", 8, 0.5))]  # fmt: skip
    root = write_sweep_folder(tmp_path / "s", jobs)
    path = root / "job2" / "evaluation" / "test" / "summary.json"
    write_sealed(path, json.loads(path.read_text()) | {"held_out": "other"})
    report_sweep(root)
    found = json.loads((root / "answer.json").read_text())
    assert found["choice"]["label"] is None
    assert found["choice"]["reason"].startswith("No recommendation over all jobs: they have different held-out pairs")
    assert [group["labels"] for group in found["groups"]] == [
        ["path a, rank 8", "path a, rank 16"], ["path b, rank 8"]]  # fmt: skip
    assert [group["choice"]["label"] for group in found["groups"]] == ["path a, rank 8", "path b, rank 8"]
    assert len(found["settings"]) == 3
    assert "not against each other" in (root / "report.html").read_text()


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
