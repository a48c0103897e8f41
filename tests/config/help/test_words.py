"""Unknown words are answered with the known ones, other tools' too; settings without effect say so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from dpo.config.help.words import WORDS, hint
from dpo.config.identity import flat
from dpo.config.parse import plain
from dpo.config.schema import Config
from dpo.pages.defaults import default_settings

SAID = [
    ("train", "lr=1e-5", "lr: unknown key; here it is dpo.learning_rate=..."),
    ("train", "+learning_rate=1e-5", "learning_rate: unknown key; here it is dpo.learning_rate=..."),
    ("train", "dpo.lr=1e-5", "dpo.lr: unknown key; here it is dpo.learning_rate=..."),
    ("train", "per_device_train_batch_size=2", "here it is dpo.batch_size=..."),
    ("train", "num_train_epochs=2", "here it is dpo.epochs=..."),
    ("train", "dpo.max_length=2", "here it is dataset.max_length=..."),
    ("train", "loss_type=ipo", "here it is dpo=..."),
    ("train", "lora_r=2", "here it is lora.rank=..."),
    ("train", "dpo.rank=2", "here it is lora.rank=..."),
    ("train", "output_dir=x", "here it is the environment variable DPO_OUTPUTS"),
    ("train", "dpo.bta=2", "dpo.bta: unknown key; nearest: dpo.beta"),
    ("train", "lora.max_steps=2", "here it is dpo.max_steps=..."),
    ("train", "--beta=0.1", "--beta=0.1: unknown flag; here it is dpo.beta=...; settings are written key=value"),
    ("train", "hydra.run.dir=x", "hydra.run.dir: has no effect here; runs land in"),
    ("train", "hydra.sweep.dir=x", "hydra.sweep.dir: has no effect here; sweeps land in"),
    ("train", "hydra.verbose=true", "hydra.verbose: has no effect here; DPO_TRACEBACK=1"),
    ("train", "hydra/sweeper=basic", "hydra/sweeper: has no effect here; -m or sweep=NAME"),
    ("evaluate", "max_new_tokens=9", "here it is evaluation.max_new_tokens=..."),
    ("evaluate", "evaluation.promts=9", "nearest: evaluation.prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "word", "said"), SAID, ids=[word for _, word, _ in SAID])
def test_an_unknown_word_is_answered_with_the_known_one(
    verb: str, word: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"dpo.{verb}", word])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"dpo.{verb}").main()
    assert ended.value.code in (2, 9)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_an_experiment_is_chosen_with_a_plus_sign_too(compose: object) -> None:
    from dpo.config.arguments import arguments

    assert arguments(["+experiment=smoke"], None) == ["experiment=smoke"]


def test_every_word_of_another_tool_leads_to_a_key_that_is_there(compose: object) -> None:
    keys = {*default_settings(), *flat(plain(compose("dpo=robust", "dataset=local")))}  # type: ignore[operator]
    groups = set(Config.__dataclass_fields__)
    missing = {ours for ours in WORDS.values() if ours not in keys | groups and not ours.startswith("evaluation.")}
    assert missing == set()


def test_nothing_near_is_nothing_said() -> None:
    assert hint("xyzzy", []) == ""
    assert hint("xyzzy", ["seed", "name"]) == "; allowed: name, seed"
    assert "allowed" not in hint("xyzzy", [f"k{i}" for i in range(40)])
