"""Sweeps that train for real on a tiny model: shared work, failures, kills, launchers, trackers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny

from dpo.records.run import state_of
from dpo.sweeps.files import read_sweep

LIGHT = ("sweep.evaluation.prompts=6", "sweep.evaluation.max_new_tokens=8")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sweep-inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl", 80)


def words(inputs: tuple[Path, Path], *more: str) -> list[str]:
    return ["-m", *tiny.arguments(*inputs, "lora=lora", *LIGHT), *more]


def start(argv: list[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
    """The command line itself, as one types it."""
    environment = {**os.environ, "DPO_OUTPUTS": str(cwd / "outputs"), "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        [sys.executable, "-m", "dpo.train", *argv],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(argv: list[str], cwd: Path, **more: str) -> tuple[int, str]:
    process = start(argv, cwd, **more)
    output, _ = process.communicate(timeout=540)
    return process.returncode, output


def root(cwd: Path) -> Path:
    (found,) = (cwd / "outputs" / "sweeps").iterdir()
    return found


def records(cwd: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root(cwd).glob("*/run.json")}


def test_a_failed_job_is_named_the_others_complete_and_only_it_runs_again(inputs, tmp_path):
    model, _ = inputs
    missing = tmp_path / "missing"
    argv = words(inputs, f"model.path={missing},{model}", "dpo.max_steps=2", "sweep.evaluate=false")
    code, output = run([word for word in argv if word != f"model.path={model}"], tmp_path)
    assert code == 1, output
    assert "1 of 2 jobs did not complete" in output
    assert f"path {missing}: failed (exit 2): model.path={missing}: no such folder" in output
    (complete,) = [name for name, record in records(tmp_path).items() if record["status"] == "complete"]
    before = records(tmp_path)[complete]
    assert before["parent"] == root(tmp_path).name
    assert "No job was evaluated" in output
    # Another cause of failure, so that it shows that the job was tried again.
    missing.mkdir()
    code, output = run([word for word in argv if word != f"model.path={model}"], tmp_path)
    assert code == 1, output
    assert "2 jobs, 1 complete already" in output
    assert f"path {missing}: failed (exit 2): model.path={missing}: no config.json" in output
    assert records(tmp_path)[complete] == before


@pytest.mark.slow
def test_nine_jobs_four_at_once_compute_each_reference_once(inputs, tmp_path):
    grid = ("dpo.beta=0.05,0.1,0.3", "lora.rank=2,4,8", "hydra.launcher.slots=4", "sweep.evaluate=false")
    code, output = run(words(inputs, *grid), tmp_path, DPO_CACHE=str(tmp_path / "cache"))
    assert code == 0, output
    ledgers = [json.loads(path.read_text()) for path in root(tmp_path).glob("*/ledger.json")]
    assert len(ledgers) == 9
    reference = [ledger["phases"]["reference"] for ledger in ledgers]
    # All read the same 32 training and the dev pairs; every one was computed by exactly one job.
    (distinct,) = {entry["pairs"] for entry in reference}
    assert sum(entry["misses"] for entry in reference) == distinct
    assert {entry["hits"] + entry["misses"] for entry in reference} == {distinct}
    (prepared,) = (path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())
    assert prepared.name in {path.name.removesuffix(".lock") for path in (tmp_path / "cache" / "tokens").glob("*.lock")}


@pytest.mark.slow
def test_jobs_of_two_processes_each_equal_jobs_of_one(inputs, tmp_path):
    grid = ("dpo.beta=0.1,0.3", "hardware.precision=fp32", "sweep.evaluate=false", "hydra.launcher.slots=1")
    losses = []
    for name, more in (("one", ()), ("two", ("hardware.parallel=ddp", "hardware.processes=2"))):
        (tmp_path / name).mkdir()
        code, output = run(words(inputs, *grid, *more), tmp_path / name)
        assert code == 0, output
        folder = root(tmp_path / name)
        assert {record["processes"] for record in records(tmp_path / name).values()} == {1 if name == "one" else 2}
        files = sorted(folder.glob("*/metrics.jsonl"))
        losses.append([[json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in files])
    assert len(losses[0]) == 2
    assert losses[0][0] != losses[0][1]
    for mine, theirs in zip(*losses, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def running(cwd: Path) -> list[dict[str, Any]]:
    """Records of jobs that have logged a step and are at it."""
    if not (cwd / "outputs" / "sweeps").is_dir():
        return []
    return [
        record
        for name, record in records(cwd).items()
        if state_of(record) == "running" and (root(cwd) / name / "metrics.jsonl").is_file()
    ]


@pytest.mark.slow
def test_kill_9_of_a_job_and_of_the_sweep_itself_and_it_ends_the_same(inputs, tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    # Long enough to be struck in the middle.
    grid = words(inputs, "dpo.beta=0.05,0.1,0.3", "dpo.max_steps=300", "dpo.save_every=20", "hydra.launcher.slots=2")
    code, output = run(grid, calm)
    assert code == 0, output

    sweep = start(grid, rough)
    wait_for(lambda: running(rough), sweep)
    os.kill(running(rough)[0]["pid"], signal.SIGKILL)
    output, _ = sweep.communicate(timeout=540)
    assert sweep.returncode == 1, output
    assert "1 of 3 jobs did not complete" in output
    assert "killed (signal 9)" in output
    assert sorted(job.state for job in read_sweep(root(rough)).jobs) == ["complete", "complete", "killed"]

    victim = next(job for job in read_sweep(root(rough)).jobs if job.state == "killed")
    sweep = start(grid, rough)
    wait_for(lambda: running(rough), sweep)
    sweep.kill()
    sweep.wait()
    code, output = run(grid, rough)
    assert code == 0, output
    attempts = records(rough)[victim.folder.name]["attempts"]
    # The orphan was told to stop and wrote a checkpoint; nothing ran beside it.
    spans = [(attempt["started"], attempt["ended"]) for attempt in attempts]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert len(attempts) >= 3
    assert not [
        p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("DPO_SWEEP") == root(rough).name
    ]
    for job in read_sweep(root(calm)).jobs:
        (mine,) = (root(calm) / job.folder.name / "adapter").glob("*.safetensors")
        (other,) = (root(rough) / job.folder.name / "adapter").glob("*.safetensors")
        assert mine.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_a_truthful_state_and_the_same_command_continues(inputs, tmp_path):
    grid = words(inputs, "dpo.beta=0.05,0.1", "dpo.max_steps=60", "hydra.launcher.slots=1", "sweep.evaluate=false")
    sweep = start(grid, tmp_path)
    wait_for(lambda: running(tmp_path), sweep)
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, output
    assert "interrupted: 0 of 2 jobs complete; the same command continues" in output
    assert sorted(job.state for job in read_sweep(root(tmp_path)).jobs) == ["interrupted", "waiting"]
    code, output = run(grid, tmp_path)
    assert code == 0, output


@pytest.mark.slow
def test_a_second_sweep_of_the_same_jobs_is_refused_while_the_first_runs(inputs, tmp_path):
    grid = words(inputs, "dpo.beta=0.05,0.1", "dpo.max_steps=60", "sweep.evaluate=false")
    sweep = start(grid, tmp_path)
    wait_for(lambda: running(tmp_path), sweep)
    code, output = run(grid, tmp_path)
    assert code == 2, output
    assert "another process is running this sweep" in output
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=120)
    assert sweep.returncode == 143


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_a_sweep_through_another_launcher(inputs, tmp_path, launcher):
    pytest.importorskip("submitit" if launcher == "submitit_local" else "ray")
    missing = tmp_path / "missing"
    argv = words(inputs, f"hydra/launcher={launcher}", f"model.path={inputs[0]},{missing}", "dpo.max_steps=2")
    code, output = run([word for word in argv if word != f"model.path={inputs[0]}"], tmp_path)
    assert code == 1, output
    assert f"path {missing}: failed (exit 2)" in output
    states = {job.values["model.path"]: job.state for job in read_sweep(root(tmp_path)).jobs}
    assert states == {str(inputs[0]): "complete", str(missing): "failed"}


def offline_runs(cwd: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in every offline run of a sweep: id, name, group, job type, exit code."""
    found = []
    for run in sorted(root(cwd).glob("*/wandb/offline-run-*")):
        wandb = Path(sys.executable).with_name("wandb")
        done = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        found.append({"job": run.parents[1].name, "id": run.name.rpartition("-")[2], "text": done.stdout})
    return found


@pytest.mark.slow
def test_offline_wandb_runs_of_a_2_x_2_sweep_read_back(inputs, tmp_path):
    grid = [
        word
        for word in words(inputs, "dpo.beta=0.05,0.1", "lora.rank=2,4", "dpo.max_steps=60")
        if "tracking" not in word
    ]
    grid += ["tracking=wandb", "hydra.launcher.slots=1"]
    sweep = start(grid, tmp_path)
    wait_for(lambda: running(tmp_path), sweep)
    sweep.send_signal(signal.SIGINT)
    sweep.communicate(timeout=120)
    interrupted = offline_runs(tmp_path)
    code, output = run(grid, tmp_path)
    assert code == 0, output
    runs = offline_runs(tmp_path)
    # Four trainings, each with its evaluation in a part of its own; the continued one has three parts of one run.
    assert len(runs) == 9
    assert len({run["id"] for run in runs}) == 4
    assert {run["id"] for run in interrupted} <= {run["id"] for run in runs}
    for found in runs:
        assert root(tmp_path).name in found["text"]
        assert found["job"] in found["text"] or "evaluation/kl" in found["text"]
    # The sweep passed its signal on as SIGTERM; all that came after ended well.
    assert '"exit_code":143' in interrupted[0]["text"]
    assert sum('"exit_code":0' in found["text"] or '"exit":{}' in found["text"] for found in runs) == 8
    assert sum("evaluation/kl" in found["text"] for found in runs) == 4
    assert sum("train/loss" in found["text"] for found in runs) >= 4
