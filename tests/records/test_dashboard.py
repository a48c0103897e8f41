"""The W&B workspace as code: what it shows, and that without a key it is written and nobody is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from wandb_server import Server

from dpo.records.dashboard import as_json, build


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in spec["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_it_shows_curves_quality_and_swept_keys_grouped_by_sweep() -> None:
    found = as_json(build("me", "dpo", "title", "run-1234"))
    text = json.dumps(panels(found))
    for key in ("train/loss", "rewards/margins", "rewards/accuracies", "evaluation/kl", "train/pairs_per_second"):
        assert key in text
    parallel = [p for p in panels(found) if p["viewType"] == "Parallel Coordinates Plot"]
    columns = [column["accessor"] for column in parallel[0]["config"]["columns"]]
    assert columns[:3] == [f"config:{key}.value" for key in ("dpo.beta", "lora.rank", "dpo.learning_rate")]
    (runs,) = found["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert runs["filters"]["filters"][0]["value"] == "run-1234"


def run(words: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-m", "dpo.dashboard", *words],
        capture_output=True, text=True, timeout=120, cwd=cwd, stdin=subprocess.DEVNULL, check=False,
        env={**clean, "NETRC": os.devnull, "DPO_OUTPUTS": str(cwd), **more},
    )  # fmt: skip


def test_with_a_key_it_is_saved_through_the_real_client_and_again_over_the_same_view(tmp_path: Path) -> None:
    server = Server()
    online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
    done = run(["project=mine", "group=run-1234", "title=Beta and rank"], tmp_path, **online)
    again = run(["project=mine", "title=Beta and rank"], tmp_path, **online)
    server.stop()
    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    # Without entity= it is the key's own.
    first, second = [
        body["variables"] for kind, body in server.received if kind == "graphql" and "upsertView" in body["query"]
    ]
    assert {key: first[key] for key in ("entityName", "projectName", "displayName", "type")} == {
        "entityName": "tester", "projectName": "mine", "displayName": "Beta and rank", "type": "project-view",
    }  # fmt: skip
    assert "id" not in first
    assert (second["id"], second["name"]) == ("dmlldw==", first["name"])
    written = json.loads((tmp_path / "dashboard-mine.json").read_text())
    assert shape(json.loads(second["spec"])) == shape(written["spec"])
    assert f"saved: {server.url}/tester/mine?nw=" in done.stdout


def shape(spec: dict[str, Any]) -> Any:
    """What a spec says without the ids that every serialization draws anew."""
    if isinstance(spec, dict):
        return {key: shape(value) for key, value in spec.items() if not key.startswith("__id") and key != "id"}
    return [shape(value) for value in spec] if isinstance(spec, list) else spec


def test_a_server_that_refuses_is_one_line_and_the_json_is_there(tmp_path: Path) -> None:
    server = Server("refuse")
    done = run(["project=mine"], tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="a" * 40)
    server.stop()
    assert done.returncode == 8
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert "not saved" in done.stderr
    assert (tmp_path / "dashboard-mine.json").is_file()


def test_without_a_key_its_json_is_written(tmp_path: Path) -> None:
    done = run(["project=mine"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not saved to W&B: no key found" in done.stdout
    assert json.loads((tmp_path / "dashboard-mine.json").read_text())["project"] == "mine"
