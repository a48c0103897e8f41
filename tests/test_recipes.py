"""`dpo-train train FILE`: a recipe of deltas, a run's config.yaml, or rows; printed as the overrides they stand for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo import cli
from dpo.command.classic import command_line
from dpo.command.recipe import with_files
from dpo.config.folder import conf_folder, options
from dpo.config.parse import fingerprint
from dpo.config.read import config_yaml
from dpo.config.schema import Config
from dpo.errors import ConfigError

RECIPE = """# @package _global_
defaults:
  - override /dpo: ipo
dataset: local
lora: {rank: 4}
dpo:
  beta: 0.05
  trainer: {adam_beta2: 0.95}
name: mine
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "my pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return tmp_path


def test_a_recipe_is_its_overrides_and_they_are_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["dpo=ipo", "dataset=local", "lora.rank=4", "dpo.beta=0.05", "dpo.trainer.adam_beta2=0.95", "name=mine"]
    assert with_files(["r.yaml"]) == made
    assert capsys.readouterr().err == f"r.yaml -> {' '.join(made)}\n"
    # What is typed wins, and a group over all the recipe says of it.
    typed = with_files(["-m", "r.yaml", "dpo=sigmoid", "lora.rank=8,16"])
    assert typed == ["dataset=local", "name=mine", "-m", "dpo=sigmoid", "lora.rank=8,16"]
    assert with_files(["r.yaml"], ("model", "dataset")) == ["dataset=local"]


def test_rows_are_a_dataset_and_a_flag_wins_over_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / ".dpo_config.json").write_text(json.dumps({"dataset_source": "hh-rlhf", "max_length": 99}))
    words = command_line("train", ["my pairs.jsonl", "r.yaml", "--beta", "0.2"], here / ".dpo_config.json")
    assert "dataset.path='my pairs.jsonl'" in words
    assert "dpo.beta=0.2" in words
    assert "dpo.beta=0.05" not in words
    assert "dataset=hh_rlhf" not in words


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_is_a_recipe(compose: Callable[..., Config], name: str) -> None:
    words = with_files([str(conf_folder() / "experiment" / f"{name}.yaml")])
    typed = [word.replace("dpo.trainer.", "++dpo.trainer.") for word in words]
    assert fingerprint(compose(*typed)) == fingerprint(compose(f"experiment={name}"))


RUNS = [
    [],
    ["experiment=zephyr_qlora", "hardware=a100_40gb", "tracking=none"],
    ["dpo=mpo", "dpo.loss=[sigmoid,hinge]", "dpo.loss_weights=[0.5,0.5]", "lora=full", "dpo.learning_rate=1e-6"],
    ["dataset=local", "dataset.path='a b,c.jsonl'", "++dataset.columns={prompt: 'the, question'}", "model=qwen3_0_6b"],
    ["dataset=shp", "lora=int8", "++dpo.trainer.lr_scheduler_kwargs={num_cycles: 2}", "seed=3", "name=x.y-z"],
]


@pytest.mark.parametrize("words", RUNS, ids=str)
def test_a_runs_config_is_the_same_run_elsewhere(here: Path, compose: Callable[..., Config], words: list[str]) -> None:
    """The same by all that decides what is computed, whatever the machine and the tracker."""
    config = compose(*words)
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(config_yaml(config))
    for named in ("run", "run/config.yaml"):
        again = with_files([named])
        assert not any(word.startswith(("hardware", "tracking")) for word in again)
        typed = [f"++{w}" if w.startswith(("dpo.trainer", "dataset.columns")) else w for w in again]
        assert fingerprint(compose(*typed)) == fingerprint(config)
        assert compose(*typed).name == config.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpoo: {beta: 1}", "bad.yaml: dpoo: unknown key; nearest: dpo"),
        ("defaults: [{override /dpo: ippo}]", "bad.yaml: dpo=ippo: no such option; nearest: ipo"),
        ("hydra: {run: {dir: x}}", "bad.yaml: hydra: unknown key"),
        ("dpo: {bta: 0.1}", "dpo.bta: unknown key; nearest: dpo.beta"),
        ("- 1", "bad.yaml: must hold a mapping of names"),
        ("dpo: {beta: '${oc.env:HOME}'}", "dpo.beta"),
        ("options: {dpo: base_nothing}\ndpo: {}", "base_nothing is the schema of no option of conf/dpo"),
        (None, "bad.yaml: no such file; a recipe (.yaml), a run's config.yaml or rows"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_a_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    if text is not None:
        (here / "bad.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["dpo-train"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "bad.yaml", "--cfg", "job"] if text is None else ["train", "bad.yaml"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (here / "outputs").exists()


def test_a_file_of_no_known_kind_is_refused(here: Path) -> None:
    (here / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="neither a recipe"):
        with_files(["notes.txt"])


def test_the_cards_command_composes_to_the_same_run(compose: Callable[..., Any]) -> None:
    """Where data and weights are of the hub or shipped; elsewhere their paths are private and the last part stays."""
    import yaml

    from dpo.release.card import _command

    config = compose("experiment=quickstart", "dpo=ipo", "lora.rank=4")
    words = str(_command(yaml.safe_load(config_yaml(config)))).split()
    assert words[:3] == ["python", "-m", "dpo.train"]
    assert fingerprint(compose(*words[3:])) == fingerprint(config)
    secret = compose("dataset=local", "dataset.path=/home/me/secret/pairs.jsonl")
    assert "secret" not in str(_command(yaml.safe_load(config_yaml(secret))))
