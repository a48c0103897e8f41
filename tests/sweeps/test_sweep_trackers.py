"""A real 2 x 2 sweep in every tracker: one group, names and ids as everywhere, and states that are true.

Of the four jobs two diverge, so that each tracker has ended runs of both kinds to show.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import test_sweep_real
from test_sweep_real import inputs, offline_runs, root, words  # noqa: F401 - inputs is a fixture
from wandb_server import Server

from dpo.records.dashboard import CURVES, EVALUATED
from dpo.records.tracking.identity import identify
from dpo.sweeps.files import read_sweep

# With so large a beta the first gradient leaves the range of fp32.
GRID = ("dpo.beta=0.1,1e38", "lora.rank=2,4", "hydra.launcher.slots=2")


def sweep(inputs: tuple[Path, Path], cwd: Path, tracking: str, **more: str) -> dict[str, tuple[bool, int | None]]:  # noqa: F811
    """Run it; (whether it is evaluated, exit code) of each of the four runs, by name."""
    argv = [word for word in words(inputs, *GRID) if not word.startswith("tracking")]
    code, output = test_sweep_real.run([*argv, f"tracking={tracking}"], cwd, WANDB_SILENT="true", **more)
    assert code == 1, output
    jobs = read_sweep(root(cwd)).jobs
    assert sorted(job.state for job in jobs) == ["complete", "complete", "diverged", "diverged"], output
    return {job.folder.name: (job.complete, job.exit_code) for job in jobs}


@pytest.mark.slow
def test_trackio_has_the_sweep_as_one_group(inputs, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("trackio")
    wanted = sweep(inputs, tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as base:
        configs = [json.loads(text) for (text,) in base.execute("select config from configs")]
        rows = base.execute("select run_name, metrics from metrics order by id").fetchall()
        named = dict(base.execute("select run_name, config from configs").fetchall())
    assert {config["_Group"] for config in configs} == {root(tmp_path).name}
    assert set(named) == set(wanted)
    for name, (evaluated, code) in wanted.items():
        assert json.loads(named[name])["id"] == identity(tmp_path, name).id
        logged: dict[str, Any] = {}
        for run, metrics in rows:
            logged |= json.loads(metrics) if run == name else {}
        assert logged["exit_code"] == code
        assert ("evaluation/kl" in logged) == evaluated
        assert "train/loss" in logged or code == 5


@pytest.mark.slow
def test_tensorboard_has_the_sweep_as_one_group_and_all_a_dashboard_shows(inputs, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = sweep(inputs, tmp_path, "tensorboard")
    tags: set[str] = set()
    for name, (_, code) in wanted.items():
        folder = root(tmp_path) / name / "tensorboard"
        read = EventAccumulator(str(folder)).Reload()
        texts = {t: read.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in ("run", "exit_code")}
        who = identity(tmp_path, name)
        assert json.loads(texts["run"]) == {"name": who.name, "id": who.id, "group": who.group}
        assert int(texts["exit_code"]) == code
        tags |= set(read.Tags()["scalars"])
    # The same names go to every tracker: what W&B's dashboard draws must be among them.
    assert {key for _, keys in CURVES for key in keys} | {key for _, key in EVALUATED} <= tags


@pytest.mark.slow
def test_wandb_offline_tells_a_diverged_job_from_one_that_is_done(inputs, tmp_path: Path) -> None:  # noqa: F811
    wanted = sweep(inputs, tmp_path, "wandb")
    runs = {run["id"]: run for run in offline_runs(tmp_path)}
    assert set(runs) == {identity(tmp_path, name).id for name in wanted}
    for name, (_, code) in wanted.items():
        text = runs[identity(tmp_path, name).id]["text"]
        assert root(tmp_path).name in text
        assert ended(text) == code


def ended(text: str) -> int:
    """The exit code in a run's records; a code of 0 is left out, as protobuf leaves zeros out."""
    (found,) = [record for record in map(json.loads, text.splitlines()) if "exit" in record]
    return int(found["exit"].get("exit_code", 0))


@pytest.mark.slow
def test_wandb_online_has_the_sweep_as_one_group_with_truthful_ends(inputs, tmp_path: Path) -> None:  # noqa: F811
    server = Server()
    wanted = sweep(inputs, tmp_path, "wandb", WANDB_BASE_URL=server.url, WANDB_API_KEY="a" * 40)
    server.stop()
    begun = [
        body["variables"]
        for kind, body in server.received
        if kind == "graphql" and "upsertBucket" in body["query"] and body["variables"].get("groupName")
    ]
    assert {run["groupName"] for run in begun} == {root(tmp_path).name}
    assert {
        name: (run["name"], run["exitcode"], "evaluation/kl" in run["summary"]) for name, run in server.runs.items()
    } == {identity(tmp_path, name).id: (name, code, evaluated) for name, (evaluated, code) in wanted.items()}


def identity(cwd: Path, name: str) -> Any:
    """What every tracker is told of a run."""
    return identify(root(cwd) / name, {"parent": root(cwd).name}, None)
