"""One sweep in which jobs really diverge, run out of memory, are killed and exit: the others, the page and the rest."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_html_pages import _open
from test_sweep_real import root, running

from dpo.sweeps.files import JobFiles, read_sweep
from dpo.sweeps.report import report_sweep

ADDRESS_SPACE = 16 * 2**30
"""Bytes of a job: several times what a tiny run takes, and less than half of what the large job asks for at once."""
LONG = 200_000

# Each has an alpha of its own, by which its job is found again.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "calm": {"lora": {"alpha": 11}},
    "gentle": {"lora": {"alpha": 12, "rank": 4}},
    "victim": {"lora": {"alpha": 13}, "dpo": {"max_steps": 300, "save_every": 20}},
    # So large a scale that its first step leaves the range of fp32.
    "diverges": {"lora": {"alpha": 10**37}, "dpo": {"learning_rate": 0.9}},
    "large": {
        "lora": {"alpha": 15},
        "dataset": {"path": "long.jsonl", "max_length": 2 * LONG},
        "hardware": {"engine": "plain", "attention": "eager"},
    },
    "gone": {"lora": {"alpha": 16}, "model": {"path": "./gone"}},
}


def write_inputs(cwd: Path) -> None:
    """A model, its pairs, the same pairs with some very long ones, and an experiment a job in ./conf."""
    tiny.make_model(cwd / "model")
    pairs = tiny.make_pairs(cwd / "pairs.jsonl", 80)
    draw, rows = random.Random(0), [json.loads(line) for line in pairs.read_text().splitlines()]
    for row in rows[:6]:
        row["chosen"] = " ".join(draw.choices(tiny.WORDS, k=LONG))
    (cwd / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = cwd / "conf" / "experiment"
    folder.mkdir(parents=True)
    common: dict[str, Any] = {
        "model": {"path": "model"},
        "dataset": {"path": "pairs.jsonl", "max_length": 64},
        "lora": {"rank": 2},
        "dpo": {"max_steps": 8, "save_every": 3, "learning_rate": 1e-2},
    }
    for name, changes in EXPERIMENTS.items():
        merged = {key: {**common.get(key, {}), **changes.get(key, {})} for key in {**common, **changes}}
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{json.dumps(merged)}\n")


def start(cwd: Path) -> subprocess.Popen[str]:
    words = [
        f"experiment={','.join(EXPERIMENTS)}", "model=custom", "dataset=local", "lora=lora", "tracking=none",
        "hardware=cpu", "dpo.batch_size=4", "hydra.launcher.slots=2", "sweep.evaluation.prompts=6",
        "sweep.evaluation.max_new_tokens=8",
    ]  # fmt: skip
    return subprocess.Popen(
        ["bash", "-c", f'ulimit -v {ADDRESS_SPACE // 1024}; exec "$@"', "bash",
         sys.executable, "-m", "dpo.train", "-m", *words],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "DPO_OUTPUTS": str(cwd / "outputs"), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def jobs(cwd: Path) -> dict[str, JobFiles]:
    """The sweep's jobs by their experiment."""
    names = {own["lora"]["alpha"]: name for name, own in EXPERIMENTS.items()}
    return {names[job.values["lora.alpha"]]: job for job in read_sweep(root(cwd)).jobs}


@pytest.mark.slow
def test_four_ways_to_fail_in_one_sweep(chromium: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(tmp_path)
    sweep = start(tmp_path)
    while not (running(tmp_path) and jobs(tmp_path)["victim"].state == "running"
               and (jobs(tmp_path)["victim"].folder / "metrics.jsonl").is_file()):  # fmt: skip
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.05)

    # The report at any time, while it runs.
    page = report_sweep(root(tmp_path))
    assert re.search(r": .*\d running", page.read_text())
    assert re.search(r"alpha 13.*: running", capsys.readouterr().out)

    os.kill(json.loads((jobs(tmp_path)["victim"].folder / "run.json").read_text())["pid"], signal.SIGKILL)
    output, _ = sweep.communicate(timeout=540)
    assert sweep.returncode == 1, output
    assert "4 of 6 jobs did not complete" in output
    endings = {
        "calm": ("complete", 0),
        "gentle": ("complete", 0),
        "victim": ("killed", -9),
        "diverges": ("diverged", 5),
        "large": ("out_of_memory", 6),
        "gone": ("failed", 2),
    }
    found = jobs(tmp_path)
    assert {name: (job.state, job.exit_code) for name, job in found.items()} == endings, output
    assert "tried to allocate" in str(found["large"].reason)
    for name, (state, _) in endings.items():
        # Progress: one line a job, as it ends; at the end each failure once more, by name.
        (line,) = re.findall(rf"^\[\d/6\] {re.escape(found[name].label)}: .*$", output, re.MULTILINE)
        assert state in line
        named = re.findall(rf"^ +{re.escape(found[name].label)}: .*; see .*\.log$", output, re.MULTILINE)
        assert len(named) == (state != "complete"), output

    answer = json.loads((root(tmp_path) / "answer.json").read_text())
    both = {found["calm"].label, found["gentle"].label}
    assert {setting["label"] for setting in answer["settings"]} == both
    assert answer["choice"]["label"] in {None, *both}
    with (root(tmp_path) / "jobs.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    for name, (state, code) in endings.items():
        row = rows[found[name].label]
        assert (row["state"], row["exit_code"]) == (state, str(code))
        assert bool(row["accuracy_value"]) == (state == "complete")
    dom, console = _open(chromium, root(tmp_path) / "report.html", tmp_path)
    assert console == ""
    assert "2 complete" in dom
    for name, (state, _) in endings.items():
        if state != "complete":
            assert f"<li>{found[name].label}: {state}" in dom

    # The same command, one cause mended: only what is missing or failed runs again, and ends as it must.
    kept = {name: (found[name].folder / "run.json").read_bytes() for name in ("calm", "gentle")}
    (tmp_path / "gone").symlink_to("model")
    again = start(tmp_path)
    output, _ = again.communicate(timeout=540)
    assert again.returncode == 1, output
    assert "6 jobs, 2 complete already" in output
    assert "2 of 6 jobs did not complete" in output
    found = jobs(tmp_path)
    assert {name for name, job in found.items() if job.complete} == {"calm", "gentle", "victim", "gone"}
    assert {found[name].exit_code for name in ("diverges", "large")} == {5, 6}
    assert {name: (found[name].folder / "run.json").read_bytes() for name in kept} == kept
