"""An evaluation, a continued run, an upload: each finds the run's own page again, in every tracker."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
from pathlib import Path

import pytest
from tracked import online, track, wandb_settings
from wandb_server import Server

TABLE = "evaluation/samples"
FIGURES = {"evaluation/accuracy": 0.8, "evaluation/accuracy_low": 0.7, "evaluation/accuracy_high": 0.9}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "outputs" / "run" / "20260101-000000-0123456789"


def check_page(server: Server, name: str, opened: int) -> None:
    """One run, with the curves of training and the figures, samples and files of the evaluation."""
    ((run_id, run),) = server.runs.items()
    assert (run["name"], run["job_type"], run["opened"], run["exitcode"]) == (name, "train", opened, 0)
    assert [row["train/loss"] for row in run["history"] if "train/loss" in row] == pytest.approx(
        [1, 1 / 2, 1 / 3, 1 / 4]
    )
    assert run["summary"].items() >= {**FIGURES, "train/loss": 0.25}.items()
    assert run["summary"][TABLE]["_type"] == "table-file"
    kinds = run["artifacts"]
    assert kinds[f"evaluation-{run_id}"] == "report"
    assert kinds[f"adapter-{run_id}"] == "model"


def test_wandb_online_has_the_evaluation_on_the_runs_page_under_the_environments_names(folder):
    server = Server()
    environment = online(server) | {"WANDB_NAME": "my run", "WANDB_TAGS": "one,two", "WANDB_MODE": "online"}
    told = track(folder, wandb_settings(adapter=True), environment, adapter=True, record={"git": {"commit": "c0ffee"}})
    moved = folder.rename(folder.parent / "moved")
    track(moved, wandb_settings(), online(server), record={"tracked": told["known"]}, steps=[], evaluated=True)
    server.stop()
    check_page(server, "my run", 2)
    (run,) = server.runs.values()
    assert run["tags"] == ["one", "two"]
    assert run["config"]["git.commit"]["value"] == "c0ffee"


def test_wandb_offline_is_uploaded_to_one_page_by_the_command_that_is_printed(folder, tmp_path):
    told = track(folder, wandb_settings(adapter=True), {}, adapter=True, words=["lora.rank=8", "dpo.beta=0.1"])
    again = track(folder, wandb_settings(), {}, record={"tracked": told["known"]}, steps=[], evaluated=True)
    (command,) = {told["where"].partition("upload with: ")[2] for told in (told, again)}
    assert command.endswith(" sync wandb)"), "it is printed, and works, in the folder where the run was started"
    server = Server()
    done = subprocess.run(
        shlex.split(command.removesuffix(")")), cwd=folder, capture_output=True, text=True, timeout=100,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **online(server)}, check=False,
    )  # fmt: skip
    server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    check_page(server, "rank8_beta0.1-20260101-000000", 2)


@pytest.mark.parametrize(
    ("mode", "where"), [("offline", "wandb, offline: asked for"), ("disabled", "run directory only")]
)
def test_wandb_mode_decides_where_nothing_else_does(folder, mode, where):
    told = track(folder, wandb_settings(), {"WANDB_MODE": mode, "WANDB_API_KEY": "a" * 40}, steps=[0])
    assert told["where"].startswith(where)


def test_tensorboard_and_trackio_have_it_in_the_runs_own_place(folder, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("trackio")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for backend, more in (("tensorboard", {}), ("trackio", {"project": "check", "adapter": True})):
        settings, environment = {"backend": backend, **more}, {"TRACKIO_DIR": str(tmp_path / "trackio")}
        (folder / "adapter").rename(tmp_path / "before") if (folder / "adapter").exists() else None
        told = track(folder, settings, environment, adapter=True)
        track(folder, settings, environment, record={"tracked": told["known"]}, steps=[], evaluated=True)
    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {key: read.Scalars(key)[0].value for key in FIGURES} == pytest.approx(FIGURES)
    assert [event.step for event in read.Scalars("train/loss")] == [0, 1, 2, 3]
    (table,) = [t.decode() for t in read.Tensors(TABLE)[0].tensor_proto.string_val]
    assert "| a question | before \\| \\*it\\* | after it |" in table
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as base:
        rows = base.execute("select run_name, metrics from metrics order by id").fetchall()
        artifacts = base.execute("select name, type from artifacts").fetchall()
    assert {name for name, _ in rows} == {folder.name}
    logged = {key: value for _, metrics in rows for key, value in json.loads(metrics).items()}
    assert logged.items() >= FIGURES.items()
    assert logged[TABLE]["_value"][0]["after"] == "after it"
    assert {kind for _, kind in artifacts} == {"report", "model"}


@pytest.mark.parametrize(("words", "name"), [
    (["dpo.beta=0.05", "lora.rank=16", "hardware=cpu", "tracking=wandb", "dpo.log_every=1"], "beta0.05_rank16"),
    (["model=custom", "model.path=/models/My Model/", "dataset=local", "dpo.learning_rate=1e-5"], "lr1e-5_My-Model"),
    (["experiment=quickstart", "seed=3", "++dpo.ld_alpha=0.8", "resume=never"], "seed3_ld_alpha0.8_quickstart"),
    (["hydra.run.dir=."], ""),
])  # fmt: skip
def test_a_run_is_named_by_what_was_asked_for(words, name):
    from dpo.records.tracking.identity import identify

    folder = Path("outputs/run/20260101-000000-0123456789")
    found = identify(folder, {}, None, words)
    assert found.name == (f"{name}-20260101-000000" if name else folder.name)
    assert identify(folder, {"parent": "beta-1234"}, None, words).name == folder.name
    again = identify(Path("elsewhere"), {"tracked": {"name": "old", "id": "x"}}, None, words)
    assert (again.name, again.id, again.known) == ("old", "x", True)
