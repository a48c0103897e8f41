"""`dpo.status` tells the truth about runs whose processes live, are killed, or run elsewhere."""

from __future__ import annotations

import json
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

from dpo.errors import CheckpointError
from dpo.records.files import write_sealed
from dpo.records.overview import find_runs, run_status
from dpo.records.process import process_mark
from dpo.records.read import read_metrics, read_run
from dpo.records.rows import Running
from dpo.records.run import read_record


def _write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    me = psutil.Process()
    record: dict[str, Any] = {
        "status": "running",
        "reason": None,
        "pid": me.pid,
        "pid_started": me.create_time(),
        "host": socket.gethostname(),
        "updated": time.time(),
        "step": 0,
        "max_steps": 10,
        "parent": None,
    }
    write_sealed(folder / "run.json", record | changes)
    return folder


def _log(folder: Path, *rows: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def test_a_killed_process_is_never_running(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        folder = _write(tmp_path / "r", pid=child.pid, pid_started=psutil.Process(child.pid).create_time())
        assert run_status(folder).state == "running"
        child.send_signal(signal.SIGKILL)
        # Not yet waited for: the zombie still has its pid.
        deadline = time.time() + 10
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.time() < deadline:
            time.sleep(0.01)
        assert run_status(folder).state == "killed"
    finally:
        child.kill()
        child.wait()
    status = run_status(folder)
    assert status.state == "killed"
    assert status.failed
    assert "continues it" in status.note
    assert status.eta is None


def test_a_reused_pid_is_not_the_run(tmp_path: Path) -> None:
    started = psutil.Process().create_time()
    assert run_status(_write(tmp_path / "a", pid_started=started)).state == "running"
    assert run_status(_write(tmp_path / "b", pid_started=started - 100)).state == "killed"
    mark = process_mark(psutil.Process().pid)
    if mark is None:
        pytest.skip("only Linux tells when a process started by anything but the clock")
    # The clock was set while it ran: its start time by the clock has moved, it has not.
    assert run_status(_write(tmp_path / "c", pid_started=started - 5000, pid_mark=mark)).state == "running"
    boot, _, tick = mark.rpartition(":")
    for other in (f"{boot}:{int(tick) - 1}", f"{boot[:-1]}x:{tick}"):
        assert run_status(_write(tmp_path / "d", pid_started=started, pid_mark=other)).state == "killed"


def test_a_run_of_another_machine_is_neither_running_nor_killed(tmp_path: Path) -> None:
    status = run_status(_write(tmp_path / "r", host="elsewhere.example", updated=time.time() - 600))
    assert status.state == "elsewhere"
    assert "elsewhere.example" in status.note
    assert "10 min" in status.note
    assert run_status(_write(tmp_path / "d", host="elsewhere.example", status="complete")).state == "complete"


def test_step_eta_and_best_figures(tmp_path: Path) -> None:
    now = 1_000_000.0
    folder = _write(tmp_path / "r", max_steps=30, updated=now)
    _log(folder, *({"kind": "train", "step": s, "time": now - 20 + 2 * s, "loss": 0.7 - s / 100} for s in range(1, 11)))
    _log(folder, {"kind": "eval", "step": 5, "time": now, "rewards/accuracies": 0.8, "loss": 0.6})
    _log(folder, {"kind": "eval", "step": 10, "time": now, "rewards/accuracies": 0.7, "loss": 0.5})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 11, "lo')
    status = run_status(folder, now)
    assert (status.step, status.max_steps) == (10, 30)
    assert status.eta == pytest.approx(40)
    assert status.loss == pytest.approx(0.6)
    assert (status.best_accuracy, status.best_step) == (0.8, 5)
    assert status.note == ""
    assert run_status(folder, now + 7200).note == "no step for 2 h"


def test_reasons_torn_records_and_nested_sweeps(tmp_path: Path) -> None:
    _write(tmp_path / "sweeps" / "s" / "job1", status="diverged", reason="step 7: loss is nan", parent="sweeps/s")
    _write(tmp_path / "sweeps" / "s" / "job2", status="complete", parent="sweeps/s")
    torn = tmp_path / "torn" / "x"
    torn.mkdir(parents=True)
    (torn / "run.json").write_text('{"status": "ru')
    inner = tmp_path / "sweeps" / "s" / "job2" / "checkpoints" / "step-5"
    inner.mkdir(parents=True)
    (inner / "run.json").write_text("{}")
    runs = {folder.name: run_status(folder) for folder in find_runs(tmp_path)}
    assert set(runs) == {"job1", "job2", "x"}
    assert runs["job1"].note == "step 7: loss is nan"
    assert runs["x"].state == "unreadable"
    assert runs["x"].failed


def _status(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dpo.status", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    assert "no runs under outputs" in _status(cwd=tmp_path).stdout
    hostile = "failed: \x1b]0;owned\x07\x1b[31m[bold]x"
    _write(tmp_path / "outputs" / "a" / "r1", status="failed", reason=hostile)
    _write(tmp_path / "outputs" / "a" / "r2")
    shown = _status(cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "a/r1: failed: [bold]x" in shown.stdout
    assert "\x1b" not in shown.stdout
    lines = [json.loads(line) for line in _status("json=true", cwd=tmp_path).stdout.splitlines()]
    assert {Path(line["folder"]).name: line["state"] for line in lines} == {"r1": "failed", "r2": "running"}
    wrong = _status("/nowhere/at/all", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "no such folder" in wrong.stderr


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, dpo.status; sys.argv[1:] = []; dpo.status.main(); "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_watch_follows_a_run_until_interrupted(tmp_path: Path) -> None:
    folder = _write(tmp_path / "outputs" / "a" / "r1", step=1)
    command = [sys.executable, "-u", "-m", "dpo.status", "--watch", "every=0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        seen = ""
        while "1/10" not in seen:
            seen += process.stdout.readline()
        _write(folder, step=2, status="complete")
        while "2/10" not in seen:
            seen += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        seen += process.stdout.read()
    assert process.returncode == 0
    assert "complete" in seen


def test_metrics_that_are_not_as_logged_are_named_and_give_no_figure(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": step, "time": 1.0, "loss": 0.5 + step / 8} for step in (1, 2)]
    for status in ("complete", "interrupted", "running"):
        folder = tmp_path / status
        folder.mkdir()
        _log(folder, *rows)
        metrics = folder / "metrics.jsonl"
        whole = metrics.read_bytes()
        _write(folder, status=status, reason="why", step=2, metrics=Running(whole).mark())
        assert (run_status(folder).loss, "damaged" in run_status(folder).note) == (0.75, False)
        for damaged in (whole.replace(b"0.75", b"0.35"), whole[: whole.find(b"\n") + 1], b""):
            metrics.write_bytes(damaged)
            found = run_status(folder)
            assert (found.state, found.loss, found.step) == (status, None, 2)
            assert "metrics damaged: metrics.jsonl: not as it was written" in found.note
            with pytest.raises(CheckpointError, match=r"metrics\.jsonl: not as it was written"):
                read_run(folder)
        metrics.unlink()
        os.mkfifo(metrics)
        assert "metrics damaged: metrics.jsonl: not a file" in run_status(folder).note
    # What a run that goes on has logged since is behind the mark.
    metrics.unlink()
    _log(folder, *rows, {"kind": "train", "step": 3, "time": 2.0, "loss": 0.25})
    assert run_status(folder).loss == 0.25


def test_a_run_that_goes_back_to_a_checkpoint_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = tmp_path / "r", [{"kind": "train", "step": step, "time": 1.0, "loss": 0.5} for step in (1, 2)]
    folder.mkdir()
    _log(folder, *rows)
    whole = (folder / "metrics.jsonl").read_bytes()
    _write(folder, metrics=Running(whole).mark())
    before = read_record(folder)
    first = whole[: whole.find(b"\n") + 1]
    (folder / "metrics.jsonl").write_bytes(first)
    _write(folder, metrics=Running(first).mark(), started=2.0)
    records = iter([before, read_record(folder)])
    monkeypatch.setattr("dpo.records.read.read_record", lambda _: next(records))
    assert len(read_metrics(folder)[1]) == 1


BAD: dict[str, Any] = {
    "nested": "[" * 200_000,
    "list": "[1]",
    "nan step": json.dumps({"status": "running", "step": float("nan")}),
    "huge step": '{"status": "complete", "step": 1e400}',
    "text step": '{"status": "complete", "step": "many"}',
    "text time": '{"status": "running", "updated": "yesterday", "host": "elsewhere"}',
    "odd time": '{"status": "running", "updated": 1e300, "host": "elsewhere", "pid": 1e300}',
    "list status": '{"status": ["running"]}',
    "odd steps in all": '{"status": "running", "max_steps": {"a": 1}}',
    "not text": b"\xff\xfe\x00{",
}


def test_no_single_bad_folder_hides_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dpo.config.evaluation import Status
    from dpo.status import status as show

    _write(tmp_path / "good", status="complete")
    for name, text in BAD.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("pipe", "circle", "folder", "bad metrics", "bad loss"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "circle" / "run.json").symlink_to("run.json")
    (tmp_path / "circle" / "around").symlink_to(tmp_path)
    (tmp_path / "folder" / "run.json").mkdir()
    for name, row in (
        ("bad metrics", {"step": float("nan"), "loss": 1, "time": 1}),
        ("bad loss", {"step": 1, "loss": "x"}),
    ):
        _write(tmp_path / name, status="complete")
        _log(tmp_path / name, {"kind": "train", **row})
    (tmp_path / "record gone" / "checkpoints").mkdir(parents=True)
    (tmp_path / "record gone" / "config.yaml").write_text("seed: 0\n")
    states = {folder.name: run_status(folder).state for folder in find_runs(tmp_path)}
    assert states.pop("good") == "complete"
    assert set(states) == {*BAD, "pipe", "circle", "folder", "record gone", "bad metrics", "bad loss"}
    assert set(states.values()) == {"unreadable"}
    for as_lines in (False, True):
        show(Status(root=str(tmp_path), json=as_lines, watch=False, every=2.0, limit=None))
        printed = capsys.readouterr().out
        assert "good" in printed
        assert printed.count("unreadable") >= len(states)
    for line in printed.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
