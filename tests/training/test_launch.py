"""One command becomes one process a device: what is handed to accelerate, and how signals and deaths come back."""

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

from dpo.errors import ConfigError
from dpo.records.files import write_json
from dpo.records.run import read_record, state_of
from dpo.training import launch, plans

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


@pytest.mark.slow
def test_two_machines_equal_one(inputs, tmp_path):
    """Two torchrun agents, as on two machines; rank 0 decides the folder for both."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    argv = tiny.arguments(*inputs, "lora=lora", "hardware.precision=fp32", "dpo.batch_size=5")
    code, output = tiny.run("train", argv, one)
    assert code == 0, output
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "DPO_OUTPUTS": str(two / "outputs"), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}",
                "-m", "dpo.train", *argv, "hardware.parallel=ddp",
            ],
            cwd=two, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    told = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert "done: " in told[0]
    assert "done: " not in told[1]
    _, expected = tiny.outcome(one)
    _, lines = tiny.outcome(two)
    for name in ("loss", "grad_norm", "rewards/margins"):
        got = [line[name] for line in lines if name in line]
        assert got == pytest.approx([line[name] for line in expected if name in line], rel=1e-3, abs=1e-5)
    assert len(got) == 11


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


PLANS = {
    "ddp": {"multi_gpu": True, "use_fsdp": False, "use_deepspeed": False},
    "fsdp": {"use_fsdp": True, "fsdp_version": 2, "fsdp_reshard_after_forward": True, "use_deepspeed": False},
    "zero2": {"use_deepspeed": True, "zero_stage": 2, "use_fsdp": False},
    "zero3": {"use_deepspeed": True, "zero_stage": 3, "zero3_save_16bit_model": True, "use_fsdp": False},
}


@pytest.mark.parametrize("parallel", PLANS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_each_plan_is_what_accelerate_is_given(compose, parallel, precision):
    config = compose(f"hardware.parallel={parallel}", "lora=lora", f"hardware.precision={precision}")
    plan = plans.compose(config, 4)
    given = {name: getattr(plan.arguments, name) for name in PLANS[parallel]}
    assert given == PLANS[parallel]
    assert (plan.arguments.num_processes, plan.arguments.num_machines) == (4, 1)
    assert plan.arguments.mixed_precision == ("bf16" if precision == "bf16" else "no")
    assert plan.environment["MASTER_PORT"] == str(plan.arguments.main_process_port) != "29500"
    assert Path(plan.argv[1]).name == plans.SHIPPED[config.hardware.parallel]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hardware.parallel=zero3", "lora=lora"], "deepspeed"),
        (["hardware.parallel=fsdp", "lora=lora"], "does not spread"),
        (["hardware.parallel=fsdp"], "quantized"),
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
