"""Every tracker read back, and W&B with a real server on loopback that works, breaks, stalls and dies."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import CONFIG, end, online, start, track, wandb_settings
from wandb_server import Server


def inspect(folder: Path) -> str:
    """What W&B's own reader finds in the one offline or online run in a folder."""
    (run,) = [path for path in (folder / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink()]
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "outputs" / "run" / "20260101-000000-0123456789"


def test_wandb_offline_reads_back(folder):
    told = track(folder, wandb_settings(), {}, sweep="beta-1234")
    assert told["where"].startswith("wandb, offline: no key found")
    text = inspect(folder)
    for word in (
        "train/loss",
        "train/rewards/margins",
        "eval/rewards/accuracies",
        "beta-1234",
        folder.name,
        "dpo.beta",
    ):
        assert word in text


def test_wandb_goes_online(folder):
    server = Server()
    told = track(folder, wandb_settings(mode="online"), online(server), sweep="beta-1234")
    again = track(folder, wandb_settings(), online(server), sweep="beta-1234")
    assert told["where"].startswith(f"wandb, online: {server.url}/tester/check/runs/")
    assert again["where"] == told["where"]
    begun = [
        body["variables"] for kind, body in server.received if kind == "graphql" and "upsertBucket" in body["query"]
    ]
    assert begun[0]["groupName"] == "beta-1234"
    assert begun[0]["displayName"] == folder.name
    assert begun[0]["jobType"] == "train"
    settings = {key: found["value"] for key, found in json.loads(begun[0]["config"]).items() if key != "_wandb"}
    assert settings == {"dpo.beta": 0.1, "dpo.loss": ["sigmoid"], "lora.rank": 8}
    rows = [
        json.loads(line)
        for kind, body in server.received
        if kind == "file_stream"
        for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
    ]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {0: 1.0, 1: 0.5, 2: pytest.approx(1 / 3), 3: 0.25}
    assert {row["eval/rewards/accuracies"] for row in rows if "eval/rewards/accuracies" in row} == {0.75}
    assert any(body.get("exitcode") == 0 for kind, body in server.received if kind == "file_stream")
    server.stop()


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("mode", "said"),
    [("refused", "does not answer"), ("broken", "answers 500"), ("stall", "does not answer"), ("half", "Error")],
)
def test_a_server_that_is_of_no_use_costs_seconds_and_nothing_is_lost(folder, mode, said):
    server = Server(mode)
    environment = online(server) | ({"WANDB_BASE_URL": closed_port()} if mode == "refused" else {})
    told = track(folder, wandb_settings(), environment, patience={"PROBE_SECONDS": 1.0, "INIT_SECONDS": 2.0})
    server.stop()
    assert told["where"].startswith("wandb, offline: ")
    assert said in told["where"]
    assert told["started"] + told["finished"] < 30
    assert "Traceback" not in told["output"]
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert offline.is_dir()


@pytest.mark.parametrize("death", ["cut", "stall", pytest.param("broken", marks=pytest.mark.slow)])
def test_a_network_that_dies_during_a_run_neither_stops_nor_holds_it(folder, death):
    server = Server()
    spec = {"steps": [0, "wait", 1, 2, 3], "patience": {"FINISH_SECONDS": 1.0}}
    process = start(folder, wandb_settings(), online(server), **spec)
    assert process.stdout is not None
    assert any("waiting" in line for line in process.stdout)
    if death == "cut":
        server.stop()
    else:
        server.mode = death
    told = end(process)
    server.stop()
    assert told["where"].startswith("wandb, online")
    assert told["finished"] < 30
    text = inspect(folder)
    assert text.count("train/loss") >= 4


def test_going_online_demanded_and_impossible_is_a_network_error(folder):
    from dpo.config.tracking import Wandb, WandbMode
    from dpo.errors import NetworkError
    from dpo.records.tracking import build_tracker

    settings = Wandb(backend="wandb", project="check", mode=WandbMode.online)
    os.environ["NETRC"] = os.devnull
    try:
        with pytest.raises(NetworkError, match="no key found"):
            build_tracker(settings, folder, CONFIG, {})
    finally:
        del os.environ["NETRC"]


def test_trackio_reads_back_and_a_continued_run_is_the_same(folder, tmp_path):
    pytest.importorskip("trackio")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    settings = {"backend": "trackio", "project": "check"}
    told = track(folder, settings, environment, steps=[0, 1], sweep="beta-1234")
    assert told["where"].startswith(f"trackio, {tmp_path / 'trackio'}")
    track(folder, settings, environment, steps=[2, 3], sweep="beta-1234")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
        (config,) = base.execute("select config from configs").fetchall()
    assert {name for name, _, _ in rows} == {folder.name}
    logged: dict[int, dict[str, float]] = {}
    for _, step, metrics in rows:
        logged.setdefault(step, {}).update(json.loads(metrics))
    assert [logged[step]["train/loss"] for step in range(4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert logged[2]["eval/rewards/accuracies"] == 0.75
    written = json.loads(config[0])
    assert (written["dpo.beta"], written["lora.rank"]) == (0.1, 8)
    assert written["_Group"] == "beta-1234"


def test_tensorboard_reads_back_and_a_continued_run_replaces_what_it_repeats(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"backend": "tensorboard", "group": "mine"}
    told = track(folder, settings, {}, sweep="beta-1234")
    assert "tensorboard --logdir" in told["where"]
    track(folder, settings, {}, steps=[2, 3, 4])
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert found == [(step, pytest.approx(1 / (step + 1))) for step in range(5)]
    assert "eval/rewards/accuracies" in read.Tags()["scalars"]
    (config, about) = (
        "\n".join(t.decode() for t in read.Tensors(name)[0].tensor_proto.string_val) for name in ("config", "run")
    )
    assert json.loads(config) == {"dpo.beta": 0.1, "dpo.loss": ["sigmoid"], "lora.rank": 8}
    assert {k: v for k, v in json.loads(about).items() if k != "id"} == {
        "name": folder.name, "group": "mine",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_one_line_and_the_run_goes_on(folder, tmp_path, backend):
    """A module that cannot be imported, first on the path, as on a machine without the package."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / f"{backend}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{backend}'\", name='{backend}')\n"
    )
    path = os.pathsep.join([str(shadow), os.environ.get("PYTHONPATH", "")])
    settings = {"backend": backend} | ({} if backend == "tensorboard" else {"project": "check"})
    settings |= {"mode": "auto"} if backend == "wandb" else {}
    told = track(folder, settings, {"PYTHONPATH": path})
    assert told["where"] == "run directory only"
    (line,) = [line for line in told["output"].splitlines() if line.startswith("tracking:")]
    assert f"{backend} did not start, the package {backend} is missing (pip install" in line


def test_a_tracker_that_breaks_is_said_once_and_never_holds_a_run(capsys):
    from dpo.records.tracking import tracker as trackers

    class Breaks(trackers.NoTracker):
        calls = 0

        def log(self, kind, step, values):
            self.calls += 1
            raise BrokenPipeError("its service is gone")

        def finish(self, exit_code):
            raise BrokenPipeError("its service is gone")

    broken = Breaks()
    guarded = trackers.Guarded(broken)
    for step in range(3):
        guarded.log("train", step, {"loss": 1.0})
    assert broken.calls == 1
    guarded.finish(0)
    assert capsys.readouterr().out.count("tracking: broke off (BrokenPipeError)") == 2


def test_the_clients_process_killed_during_a_run_does_not_stop_it(folder):
    """wandb's own service dies; the run ends as if nothing had been."""
    import psutil

    process = start(folder, wandb_settings(), {}, steps=[0, "wait", 1, 2, 3])
    assert process.stdout is not None
    assert any("waiting" in line for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    for child in children:
        child.kill()
    told = end(process)
    assert told["finished"] < 30


def test_telemetry_stays_off(folder):
    """The hub's by the switch trl and transformers read; W&B's own by what its server is sent."""
    code = "from dpo.records.quiet import quiet; quiet()\n"
    code += "import huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
    server = Server()
    track(folder, wandb_settings(), online(server))
    server.stop()
    assert not [kind for kind, _ in server.received if "otel" in kind or "telemetry" in kind or "/v1/" in kind]
