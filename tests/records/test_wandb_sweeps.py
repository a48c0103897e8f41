"""W&B Sweeps: the search in scripts/ as the agent of W&B runs it, with a server on loopback in place of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from wandb_server import Server

SEARCH = Path(__file__).parents[2] / "scripts" / "wandb_sweep.yaml"
DRAWN = {"dpo.beta": 0.2, "dpo.learning_rate": 1e-4, "lora.rank": 4}


def test_the_agents_words_compose_to_a_run_with_what_was_drawn() -> None:
    """By the agent's own functions, without starting it."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    from dpo.config.arguments import arguments
    from dpo.config.schema import Config
    from dpo.pages.defaults import composed

    search = yaml.safe_load(SEARCH.read_text())
    assert set(search["parameters"]) == set(DRAWN)
    found = {"program": search["program"], "args": {key: {"value": value} for key, value in DRAWN.items()}}
    given = create_sweep_command_args(found) | {"env": [], "program": [search["program"]]}
    words = [
        part
        for word in create_sweep_command(search["command"])
        for part in (given[word[2:-1]] if word.startswith("${") else [word])
    ]
    assert words[:3] == ["python", "-m", "dpo.train"]
    config = composed("config", Config, arguments(words[3:], None))
    assert (config.dpo.beta, config.dpo.learning_rate, config.lora.rank) == (0.2, 1e-4, 4)
    assert config.resume == "never"


@pytest.mark.slow
def test_an_agent_runs_the_search_and_each_run_is_the_one_it_asked_for(tmp_path: Path) -> None:
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl")
    search = yaml.safe_load(SEARCH.read_text())
    shared = [word for word in tiny.arguments(model, pairs) if not word.startswith("tracking=")]
    search["command"][search["command"].index("experiment=quickstart")] = "dpo.max_steps=2"
    search["command"][4:5] = [*shared, "dpo.max_steps=2"]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search, sort_keys=False))
    server = Server()
    server.queue = [DRAWN, {**DRAWN, "dpo.beta": 0.4}]
    there = Path(sys.executable).parent
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment = {
        **clean, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "NETRC": os.devnull,
        "PATH": f"{there}:{os.environ['PATH']}", "DPO_OUTPUTS": str(tmp_path / "outputs"),
    }  # fmt: skip
    for words in (["sweep", "--project", "check", "search.yaml"], ["agent", "tester/check/abcd1234"]):
        done = subprocess.run(
            [there / "wandb", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
    server.stop()
    assert json.loads(json.dumps(yaml.safe_load(server.sweep or ""))) == search
    assert {name: run["config"]["dpo.beta"]["value"] for name, run in server.runs.items()} == {
        "agent1": 0.2, "agent0": 0.4,
    }  # fmt: skip
    for run in server.runs.values():
        assert run["exitcode"] == 0
        assert "eval/loss" in run["summary"]
        assert (run["sweep"], run["project"]) == ("abcd1234", "check")
