"""Config that a stranger wrote: nothing in it is looked up, run, or multiplied."""

from __future__ import annotations

import importlib
import os
import sys
import time

import pytest

from dpo.config.plain_yaml import MOST_BYTES, load_yaml
from dpo.config.read import config_yaml, read_config
from dpo.errors import ConfigError

BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(9))
CALLBACK = "hydra: {callbacks: {mine: {_target_: os.system, command: 'touch trap'}}}\n"
FILES = {
    "callbacks": ("experiment/mine.yaml", f"# @package _global_\n{CALLBACK}", "experiment=mine"),
    "formatter": (
        "experiment/mine.yaml",
        "# @package _global_\nhydra: {job_logging: {formatters: {f: {(): os.system, command: touch trap}}}}\n",
        "experiment=mine",
    ),
    "group": ("hydra/callbacks/mine.yaml", "mine: {_target_: os.system, command: touch trap}\n", "sweep=mine"),
    "package": ("lora/mine.yaml", "# @package hydra.callbacks\nmine: {_target_: os.system, command: x}\n", "lora=mine"),
    "package of a default": ("lora/mine.yaml", "defaults: [/evil@_global_.hydra.callbacks]\n", "lora=mine"),
    "launcher": ("hydra/launcher/mine.yaml", "_target_: os.system\ncommand: touch trap\n", "hydra/launcher=mine"),
    "sweeper": ("sweep/mine.yaml", "# @package _global_\nhydra: {sweeper: {_target_: os.system}}\n", "sweep=mine"),
    "job environment": (
        "sweep/mine.yaml", "# @package _global_\nhydra: {job: {env_set: {LD_PRELOAD: /x.so}}}\n", "sweep=mine"
    ),
    "parameter": (
        "sweep/mine.yaml",
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {++hydra.callbacks.x._target_: os.system, seed: '1,2'}}}\n",
        "sweep=mine",
    ),
}  # fmt: skip
WORDS = (
    "+hydra.callbacks.x._target_=os.system",
    "++hydra.callbacks={x:{_target_:os.system}}",
    "hydra.searchpath=[pkg://antigravity]",
    "hydra.job_logging.formatters.simple.format=x",
    "hydra/job_logging=default",
    "lora@hydra.callbacks=lora",
    "hydra.run.dir=elsewhere",
    "hydra.job.chdir=true",
    "~hydra.callbacks",
    "hydra.launcher._target_=os.system",
    "hydra.sweeper.params={hydra.callbacks.x._target_:os.system}",
    "--experimental-rerun=x.pickle",
    "--config-path=elsewhere",
    "--config-name=evil",
)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a verb in this process: (exit code, lines of the error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))

    def called(verb: str, *words: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(sys, "argv", [f"dpo.{verb}", *words])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"dpo.{verb}").main()
        return ended.value.code, capsys.readouterr().err.strip().splitlines()

    return called


@pytest.mark.parametrize(
    ("case", "folder"), [*((case, "conf") for case in FILES), ("callbacks", "elsewhere"), ("package", "elsewhere")]
)
def test_a_file_sets_no_key_of_hydras_that_runs_code(call, tmp_path, case, folder):
    name, text, word = FILES[case]
    conf = tmp_path / folder
    for path, content in ((name, text), ("evil.yaml", "mine: {_target_: os.system, command: touch trap}\n")):
        (conf / path).parent.mkdir(parents=True, exist_ok=True)
        (conf / path).write_text(content)
    if case == "group":
        (conf / "sweep").mkdir()
        group = name.rpartition("/")[0]
        (conf / "sweep" / "mine.yaml").write_text(f"# @package _global_\ndefaults: [override /{group}: mine]\n")
    code, lines = call("train", word, *(["--config-dir", folder] if folder != "conf" else []))
    assert (code, len(lines)) == (9, 1), lines
    assert "mine" in lines[0] or "evil" in lines[0]
    assert "hydra." in lines[0]
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("word", WORDS)
def test_a_word_sets_no_key_of_hydras_that_is_not_on_the_list(call, word):
    code, lines = call("train", word)
    assert (code, len(lines)) == (9, 1), lines


@pytest.mark.parametrize("verb", ["status", "evaluate", "export", "synthesize", "dashboard"])
def test_every_verb_refuses_them(call, verb):
    assert call(verb, "+hydra.callbacks.x._target_=os.system")[0] == 9


def test_a_grid_and_its_launcher_can_still_be_set(call, tmp_path):
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {dpo.beta: '0.1,-1', +dpo.trainer.tf32: true}}}"
    )
    code, lines = call("train", "sweep=mine", "hydra/launcher=local", "hydra.launcher.slots=2", "hydra.mode=MULTIRUN")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: dpo.beta=-1.0: must be above 0")


@pytest.mark.parametrize(
    "text",
    ['path: "\\x24{oc.env:CANARY}"', 'path: "${oc.env:CANARY}"', '"$\\u007boc.env:CANARY}": 1', "a: [{b: '${seed}'}]"],
)
def test_a_run_config_is_never_interpolated(compose, tmp_path, monkeypatch, text):
    monkeypatch.setenv("CANARY", "the-secret")
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(compose()) + text + "\n")
    with pytest.raises(ConfigError, match="interpolation") as caught:
        read_config(path)
    assert "the-secret" not in str(caught.value)
    (tmp_path / "run.json").write_text('{"status": "complete"}')
    assert "the-secret" not in str(load_yaml(path))


@pytest.mark.parametrize("text", [f"{BOMB}", f"{BOMB}name: x\n", "a: &a [*a]\n", "[" * 3000, "x: " + "{a: " * 100])
def test_aliases_and_depth_are_bounded(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).count("\n") == 0
    assert time.process_time() - began < 3


def test_an_alias_bomb_in_a_file_of_conf_is_refused(call, tmp_path):
    (tmp_path / "conf" / "lora").mkdir(parents=True)
    (tmp_path / "conf" / "lora" / "mine.yaml").write_text(BOMB)
    code, lines = call("train", "lora=mine")
    assert code == 2
    assert "values with its aliases written out" in lines[0]


def test_a_config_that_is_no_file_is_refused_without_waiting(tmp_path):
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    for read in (load_yaml, read_config):
        with pytest.raises(ConfigError, match="not a file"):
            read(path)
    path.unlink()
    path.write_text("#" * (MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="at most"):
        load_yaml(path)


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ufffe"])
def test_a_character_that_no_yaml_may_hold_is_one_line(tmp_path, character):
    path = tmp_path / "config.yaml"
    path.write_text(f"x: {character}\n")
    for read in (load_yaml, read_config):
        with pytest.raises(ConfigError, match="not readable as YAML") as caught:
            read(path)
        assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("options", ["[]", "{model: nope}", "{nope: base_model}", "{model: [1]}", "{1: {}}", "x"])
def test_damaged_options_are_one_line(compose, tmp_path, options):
    path = tmp_path / "config.yaml"
    text = config_yaml(compose())
    path.write_text(text[: text.index("options:")] + f"options: {options}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).count("\n") == 0
