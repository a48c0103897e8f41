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
    assert columns[:3] == [f"config:config.value.{key}" for key in ("dpo.beta", "lora.rank", "dpo.learning_rate")]
    (runs,) = found["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert runs["filters"]["filters"][0]["value"] == "run-1234"


def test_without_a_key_its_json_is_written(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "dpo.dashboard", "project=mine"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False,
        env={**clean, "NETRC": os.devnull, "DPO_OUTPUTS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not saved to W&B: no key found" in done.stdout
    assert json.loads((tmp_path / "dashboard-mine.json").read_text())["project"] == "mine"
