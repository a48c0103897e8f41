"""Sweeps through Slurm: the script that is submitted, and the whole way through a stand-in for Slurm's commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("submitit")

import cloudpickle
import test_sweep
from test_sweep import events, stand, state

from dpo.config.sweeps import Submitit
from dpo.errors import ConfigError
from dpo.sweeps.clusters import build_executor, run_submitit
from dpo.sweeps.task import Task

# The worker knows no test modules.
cloudpickle.register_pickle_by_value(test_sweep)

SETTINGS = Submitit(
    slots=2, timeout_min=90, cpus_per_task=8, gpus_per_node=2, mem_gb=64.0, partition="gpu", account="lab", qos="high",
    setup=["export FROM_SETUP=1"], additional_parameters={"constraint": "a100"},
)  # fmt: skip

SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
here = pathlib.Path({folder!r})
script = pathlib.Path(sys.argv[1]).read_text()
number = 4242 + len(list(here.glob("script-*")))
(here / f"script-{{number}}").write_text(script)
for task in range(int(re.search(r"--array=0-(\\d+)", script)[1]) + 1 if "--array" in script else 1):
    names = {{"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_NODEID": "0",
             "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "node"}}
    if "--array" in script:
        names |= {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}}
    subprocess.Popen(["bash", sys.argv[1]], env={{**os.environ, **names}}, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=(here / f"error-{{number}}-{{task}}").open("w"))
print("Submitted batch job", number)
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sbatch, srun and sacct on PATH; scripts that were submitted are kept there."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {
        "sbatch": SBATCH.format(python=sys.executable, folder=str(folder)),
        "srun": SRUN,
        "sacct": f"#!/bin/sh\necho 'JobID|State|NodeList'\ncat {folder}/states 2>/dev/null\nexit 0\n",
    }
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path('/usr/bin')}:/bin")
    return folder


def test_the_submitted_script_asks_for_what_the_launcher_says(slurm: Path, tmp_path: Path) -> None:
    executor = build_executor(tmp_path / "sweep", SETTINGS, "slurm")
    with executor.batch():
        jobs = [executor.submit(print, i) for i in range(3)]
    assert [job.job_id for job in jobs] == ["4242_0", "4242_1", "4242_2"]
    (path,) = slurm.glob("script-*")
    asked = {line.removeprefix("#SBATCH ") for line in path.read_text().splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        "--account=lab", "--array=0-2%2", "--constraint=a100", "--cpus-per-task=8", "--gpus-per-node=2",
        "--job-name=sweep", "--mem=64GB", "--nodes=1", "--partition=gpu", "--qos=high", "--time=90",
    }  # fmt: skip
    assert "\nexport FROM_SETUP=1\n" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_tasks_go_through_slurm_and_end_truthfully(slurm: Path, tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    tasks: list[Task] = [stand(root, name, kind) for name, kind in {"a": "good", "b": "diverge", "c": "die"}.items()]
    told: list[str] = []
    run_submitit(tasks, SETTINGS, "slurm", lambda task: told.append(task.name), lambda running: None)
    assert sorted(told) == ["a", "b", "c"]
    assert [state(task).partition(":")[0] for task in tasks] == ["complete", "diverged (exit 5)", "killed (signal 9)"]
    assert {event[3] for event in events(root)} == {"8"}
    assert len(list(slurm.glob("script-*"))) == 1


def test_a_job_that_an_earlier_sweep_has_in_the_queue_is_waited_for(slurm: Path, tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    queued, new = stand(root, "a"), stand(root, "b")
    (root / "a.slurm").write_text("77_0\n")
    (slurm / "states").write_text("77_0|RUNNING|node\n")

    def look(running: list[Task]) -> None:
        if len(running) == 1:
            # The other one is done; now the queued one ends too.
            (root / ".submitit").mkdir(exist_ok=True)
            (root / ".submitit" / "77_0_0_result.pkl").write_bytes(b"")

    told: list[str] = []
    run_submitit([queued, new], SETTINGS, "slurm", lambda task: told.append(task.name), look)
    assert sorted(told) == ["a", "b"]
    assert {name for _, name, *_ in events(root)} == {"b"}
    # What Slurm ended without a word of the job is a failure with the scheduler's word for it.
    assert state(queued).startswith("failed (exit 1): job 77_0")


def test_without_slurm_the_launcher_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="hydra/launcher=submitit_slurm: "):
        build_executor(tmp_path / "sweep", SETTINGS, "slurm")
