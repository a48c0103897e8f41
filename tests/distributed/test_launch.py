"""One command becomes one process a device: where they meet, and how signals and deaths come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny

from dpo.config.folder import conf_folder
from dpo.distributed import launch
from dpo.errors import ConfigError
from dpo.records.files import write_json
from dpo.records.run import read_record, state_of

TWO = ("hardware.parallel=ddp", "hardware.processes=2", "lora=lora", "hardware.precision=fp32", "lora.dropout=0.2")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")


def children(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if "dpo.train" in " ".join(c.cmdline())]


def start_stepping(argv: list[str], cwd: Path, steps: int = 3) -> Any:
    """Start the launcher and wait until its run has logged `steps` steps."""
    process = tiny.start("train", argv, cwd)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for folder in tiny.folders(cwd):
            metrics = folder / "metrics.jsonl"
            if metrics.is_file() and metrics.read_text().count('"train"') >= steps:
                return process
        assert process.is_alive(), (cwd / "output.txt").read_text()
        time.sleep(0.05)
    raise AssertionError((cwd / "output.txt").read_text())


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_a_signal_to_the_command_saves_and_ends_all_ranks(inputs, tmp_path):
    # Where a look at the dev pairs is due, a signal keeps the last checkpoint; every other step saves.
    quiet = ("dpo.max_steps=100000", "dpo.save_every=100000", "dpo.eval_every=0")
    process = start_stepping(tiny.arguments(*inputs, *TWO, *quiet), tmp_path)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 143, output
    assert output.count("run directory /") == 1
    folder, record = tiny.record(tmp_path)
    assert (record["status"], record["exit_code"]) == ("interrupted", 143)
    assert record["step"] >= 3
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{record['step']}"
    assert (checkpoint / "rank-1" / "rng_state.pth").is_file()
    assert gone(ranks)


@pytest.mark.slow
def test_a_killed_rank_ends_the_command_with_the_truth(inputs, tmp_path):
    process = start_stepping(tiny.arguments(*inputs, *TWO, "dpo.max_steps=100000"), tmp_path)
    ranks = children(process.pid)
    victim = next(rank for rank in ranks if rank.environ().get("RANK") == "1")
    victim.kill()
    process.join(120)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 137, output
    assert "rank 1 was killed by signal 9" in output
    record = tiny.record(tmp_path)[1]
    assert (record["status"], record["reason"]) == ("killed", "rank 1 was killed by signal 9")
    assert gone(ranks)


@pytest.mark.slow
def test_the_command_killed_takes_its_ranks_along_and_continues_to_the_same_bits(inputs, tmp_path):
    first, second = tmp_path / "killed", tmp_path / "undisturbed"
    first.mkdir()
    second.mkdir()
    argv = tiny.arguments(*inputs, *TWO, "dpo.max_steps=60", "dpo.save_every=3")
    process = start_stepping(argv, first, 20)
    ranks = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert gone(ranks)
    folder, record = tiny.record(first)
    assert state_of(record) == "killed"
    for cwd in (first, second):
        code, output = tiny.run("train", argv, cwd)
        assert code == 0, output
    assert "continuing at step" in (first / "output.txt").read_text()
    assert tiny.record(first)[0] == folder
    assert tiny.outcome(first) == tiny.outcome(second)


@pytest.fixture(scope="module")
def on_one(inputs, tmp_path_factory) -> list[dict[str, Any]]:
    """The metrics of one process."""
    cwd = tmp_path_factory.mktemp("one")
    code, output = tiny.run("train", machines(inputs), cwd)
    assert code == 0, output
    return tiny.outcome(cwd)[1]


def machines(inputs: tuple[Path, Path]) -> list[str]:
    """The words of a run over machines."""
    return tiny.arguments(*inputs, "lora=lora", "hardware.precision=fp32", "dpo.batch_size=5")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_machines(cwd: Path, told: list[str], expected: list[dict[str, Any]]) -> None:
    assert sorted("done: " in output for output in told) == [False, True]
    _, lines = tiny.outcome(cwd)
    for name in ("loss", "grad_norm", "rewards/margins"):
        got = [line[name] for line in lines if name in line]
        assert got == pytest.approx([line[name] for line in expected if name in line], rel=1e-3, abs=1e-5)
    assert len(got) == 11


def documented(launcher: str) -> str:
    """The command that conf/hardware/shared.yaml gives for `launcher`, in one line."""
    lines = [line.removeprefix("#").strip() for line in (conf_folder() / "hardware" / "shared.yaml").open()]
    start = next(i for i, line in enumerate(lines) if line.startswith(launcher))
    end = next(i for i in range(start, len(lines)) if not lines[i].endswith("\\"))
    return " ".join(line.removesuffix("\\") for line in lines[start : end + 1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun torchrun"])
def test_two_machines_equal_one(inputs, on_one, launcher, tmp_path):
    """The documented commands, on two agents of loopback as on two machines; rank 0 decides the folder for both.

    For Slurm, `srun` starts its command once a node and `scontrol` names the first node, as Slurm's own would.
    """
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    scripts = {
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
        "srun": '"$@" >0.txt 2>&1 & "$@" >1.txt 2>&1 & wait -n && wait -n',
        "scontrol": "echo 127.0.0.1; echo other",
    }
    for name, text in scripts.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    command = (
        documented(launcher).replace("--nproc-per-node=8", "--nproc-per-node=1").replace("29500", str(free_port()))
    )
    command += " " + " ".join(machines(inputs))
    environment = {
        **os.environ, "DPO_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1", "HOST0": "127.0.0.1",
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[0-1]",
    }  # fmt: skip
    if launcher == "torchrun":
        command = f"(N=0; {command}) >0.txt 2>&1 & (N=1; {command}) >1.txt 2>&1 & wait -n && wait -n"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, timeout=300, check=False)
    told = [(tmp_path / f"{node}.txt").read_text() for node in range(2)]
    assert done.returncode == 0, told
    check_machines(tmp_path, told, on_one)


def ended(folder: Path, *codes: str) -> tuple[int, dict[str, Any]]:
    """What `conclude` makes of ranks that end by these Python statements, with rank 0's run.json still open."""
    write_json(folder / "run.json", {"status": "running", "reason": None, "attempts": [{"status": "running"}]})
    ranks = []
    for number, code in enumerate(codes):
        process = subprocess.Popen([sys.executable, "-c", f"import os, sys; {code}"])
        process.wait()
        ranks.append(launch._Rank(number, process, None))
    return launch.conclude(folder, ranks, []), read_record(folder)


@pytest.mark.parametrize(
    ("codes", "code", "status", "cause"),
    [
        (("pass", "pass"), 0, "running", None),
        (("sys.exit(1)", "sys.exit(5)"), 5, "diverged", "rank 1 exited with 5"),
        (("sys.exit(1)", "os.kill(os.getpid(), 9)"), 137, "killed", "rank 1 was killed by signal 9"),
        (("os.kill(os.getpid(), 9)", "sys.exit(143)"), 137, "killed", "rank 0 was killed by signal 9"),
    ],
)
def test_the_code_of_the_cause_passes_through(tmp_path, codes, code, status, cause):
    got, record = ended(tmp_path, *codes)
    assert got == code
    assert (record["status"], record["reason"]) == (status, cause)


@pytest.mark.parametrize(("on_cpu", "threads"), [(True, max(1, (os.cpu_count() or 1) // 2)), (False, 1)])
def test_ranks_meet_at_a_free_port_of_this_machine_and_share_its_cores(monkeypatch, on_cpu, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared = launch.meeting(2, on_cpu)
    assert (shared["MASTER_ADDR"], shared["OMP_NUM_THREADS"]) == ("127.0.0.1", str(threads))
    with socket.socket() as free:
        free.bind((shared["MASTER_ADDR"], int(shared["MASTER_PORT"])))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch.meeting(2, on_cpu)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("parallel", ["fsdp", "zero2", "zero3"])
def test_what_is_spread_follows_the_stage(compose, parallel):
    from dpo.training.build import trainer_class
    from dpo.training.sharded import ShardedTrainer

    made: Any = trainer_class(compose(f"hardware.parallel={parallel}"), 2)
    assert (made.func, made.keywords) == (ShardedTrainer, {"reshard": parallel != "zero2"})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hardware.parallel=fsdp", "lora=int8"], "int8"),
        (["hardware.parallel=zero2", "dpo.optimizer=paged_adamw_8bit"], "whole tensors"),
        (["hardware.parallel=ddp", "dpo=aot"], "aot"),
        (["hardware.processes=2"], "hardware.parallel=ddp"),
        (["hardware=cpu", "hardware.parallel=ddp"], "hardware.processes=N"),
    ],
)
def test_what_cannot_be_is_one_line(compose, overrides, named):
    def try_it() -> None:
        launch.starts_ranks(compose(*overrides).hardware)

    with pytest.raises(ConfigError, match=named) as caught:
        try_it()
    assert len(str(caught.value).splitlines()) == 1
