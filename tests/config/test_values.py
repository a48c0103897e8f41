"""Values no run can use are refused before anything is loaded, in every verb; so are paths that are no files."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec

import pytest

from dpo.command.classic import CONFIG_FILE, read_file
from dpo.config.checks.passthrough import ALLOWED
from dpo.config.checks.passthrough_checks import CHECKS
from dpo.config.roots import check_roots
from dpo.errors import ConfigError

TRAIN = {
    "dpo.beta=1e-300": "dpo.beta",
    "dpo.beta=nan": "dpo.beta",
    "dpo.epochs=nan": "dpo.epochs",
    "seed=99999999999999999999999999999999999999999999": "seed",
    "hardware.processes=100000 hardware.parallel=ddp": "1 to 64",
    "hardware.memory_gb=1e300": "hardware.memory_gb",
    "dpo.trainer.dataloader_num_workers=9999": "0 to 64",
    "dpo.trainer.dataloader_num_workers=two": "whole number",
    "dpo.trainer.dataloader_prefetch_factor=2": "dataloader_num_workers of at least 1",
    "dpo.trainer.adam_beta1=2": "below 1",
    "dpo.trainer.adam_beta1=high": "a number",
    "dpo.trainer.adam_epsilon=nan": "adam_epsilon",
    "dpo.trainer.tf32=perhaps": "true or false",
    "dpo.trainer.torch_compile=[1]": "true or false",
    "dpo.trainer.lr_scheduler_kwargs=x": "a mapping",
    "dpo.trainer.log_level=loud": "one of",
    "hardware.attention=flash_attention_2": "needs the package flash-attn",
    "dataset.chat_template_kwargs.messages=x": "chat_template_kwargs.messages",
    "dataset.chat_template_kwargs.tokenize=false": "chat_template_kwargs.tokenize",
    "model=[custom,qwen3_8b]": "takes one option",
    "lora=[lora,qlora]": "takes one option",
    "experiment=[smoke,quickstart]": "takes one option",
    "hydra/launcher=[local,local]": "takes one option",
    "~lora": "takes one option",
}
VERBS = {
    "export x push=../x dry_run=true": "push",
    "export x push=a--b dry_run=true": "push",
    "export x bound=nan": "bound",
    "evaluate x evaluation.resamples=999999999": "resamples",
    "evaluate x evaluation.endpoint.concurrency=0": "endpoint",
    "judge x gold=[nope]": "gold",
    "synthesize n=9e80 out=/etc/passwd": "",
    "synthesize out=/etc/passwd": "a file",
    "synthesize generator=endpoint generator.base_url=x generator.name=y": "http://",
    "status every=inf": "every",
    "chat x temperature=nan": "temperature",
    "compare x resamples=1e99": "resamples",
    "dashboard project=glob(*) -m": "this grid has no job",
    "train dpo.beta=glob(*) -m": "this grid has no job",
    "init --beta nan": "beta",
    "init --beta inf": "beta",
    "init --beta -1": "beta",
    "init --learning-rate 7": "learning_rate",
    "init --lora-rank 0": "lora.rank",
    "report /etc/passwd": "a file",
    "evaluate /etc/passwd": "a file",
    "chat /dev/zero": "device",
    "status root=/dev/null": "device",
    "train model=custom model.path=PIPE": "pipe",
    "train resume=PIPE": "pipe",
    "evaluate PIPE": "pipe",
    "compare PIPE PIPE": "pipe",
    "judge responses=PIPE": "pipe",
    "synthesize prompts=PIPE": "pipe",
    "export PIPE": "pipe",
    "audit PIPE": "no such folder",
    "audit folder": "folder/inside/PIPE: a pipe",
    "evaluate folder": "folder/inside/PIPE: a pipe",
    "compare folder folder": "folder/inside/PIPE: a pipe",
    "train resume=folder": "folder/inside/PIPE: a pipe",
    "train model=custom model.path=folder": "folder/inside/PIPE: a pipe",
    "judge responses=answers.jsonl gold=[nope]": "gold=[nope]: no row has this column",
    "synthesize out=/proc/x/y": "/proc/x",
    "prepare dataset=local dataset.path=/dev/zero": "device",
}


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a verb in this process: (exit code, the error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for name in ("PIPE", "folder/inside/PIPE"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a", "response": "b", "gold": 1}\n')

    def called(verb: str, *words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", [f"dpo.{verb}", *words])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"dpo.{verb}").main()
        return ended.value.code, capsys.readouterr().err

    return called


def fine(found: tuple[object, str], says: str) -> None:
    code, text = found
    assert code in (2, 3), text
    assert "Traceback" not in text
    assert 1 <= len(text.strip().splitlines()) <= 3
    assert says in text


@pytest.mark.parametrize("words", TRAIN)
def test_train_refuses(call, words):
    if "flash_attention" in words and find_spec("flash_attn"):
        pytest.skip("flash_attn is installed, so asking for it is no mistake here")
    fine(call("train", *words.split()), TRAIN[words])


@pytest.mark.parametrize("words", VERBS)
def test_every_verb_refuses(call, words):
    fine(call(*words.split()), VERBS[words])


def test_a_pipe_in_place_of_the_settings_of_a_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / CONFIG_FILE)
    with pytest.raises(ConfigError, match="not readable"):
        read_file(tmp_path / CONFIG_FILE)


def test_one_option_a_group_in_files_too(call, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /lora: [lora, qlora]\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    fine(call("train", "experiment=mine"), "lora: takes one option")


def test_every_field_of_the_trainer_has_its_check():
    assert set(CHECKS) == set(ALLOWED)


@pytest.mark.parametrize("variable", ["DPO_OUTPUTS", "DPO_CACHE"])
@pytest.mark.parametrize("place", ["/dev/null", "PIPE", "answers.jsonl", "answers.jsonl/inside", "dangling"])
def test_a_root_that_is_no_folder_is_named(call, monkeypatch, tmp_path, variable, place):
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setenv(variable, place)
    with pytest.raises(ConfigError, match=f"^{variable}={place}: .* is no folder.*$"):
        check_roots()
    if place == "PIPE":
        fine(call("status"), f"{variable}={place}: ")
        code, text = call("cache") if variable == "DPO_CACHE" else (4, "set DPO_CACHE")
        assert code == 4
        assert "set DPO_CACHE" in text


def test_a_setting_given_twice_is_not_overridden_without_a_word(call):
    _, text = call("train", "dpo.beta=0.1", "seed=3", "seed=3", "+dpo.beta=0.2", "dpo.beta=-1")
    assert text.splitlines()[:2] == [
        "dpo.beta=0.1: overridden by dpo.beta=0.2 behind it", "dpo.beta=0.2: overridden by dpo.beta=-1 behind it",
    ]  # fmt: skip
    assert "seed" not in text


def test_every_verb_says_its_version(monkeypatch, capsys):
    from dpo import __version__, chat, cli

    monkeypatch.setattr(sys, "argv", ["dpo.chat", "RUN", "--version"])
    for main in (chat.main, lambda: cli.main(["chat", "RUN", "--version"])):
        main()
        assert capsys.readouterr().out.strip() == __version__
