"""Every option of every group composes, and so does every experiment."""

from __future__ import annotations

import pytest

from dpo.config.checks.combinations import check_model
from dpo.config.folder import conf_folder, options
from dpo.config.model import Model
from dpo.errors import Refused

GROUPS = ("model", "dataset", "lora", "dpo", "hardware", "tracking", "experiment")
NEEDS = {
    "hardware=mps": ("lora=lora",),
    "model=custom": ("model.path=folder",),
    "dataset=local": ("dataset.path=rows.jsonl",),
    "dataset=hub": ("dataset.id=org/name",),
    "dpo=rloo": ("dpo.reward=RUN",),
    "dataset=mixture": ("dataset.parts=[hh_rlhf,shp]",),
}
PROMISED = {
    "model": "smollm2_135m smollm2_360m smollm2_1_7b qwen3_0_6b qwen3_8b llama3_1_8b llama3_1_8b_instruct mistral_7b "
    "gemma3_1b custom",
    "dataset": "synthetic hh_rlhf webgpt shp ultrafeedback helpsteer3 local hub mixture",
    "lora": "qlora qlora_fp4 int8 lora full",
    "experiment": "smoke llama3_1_8b_hh zephyr_qlora hh_small hh_small_ipo hh_small_mpo",
}


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_every_option_composes(compose, choice):
    compose(choice, *NEEDS.get(choice, ()))


@pytest.mark.parametrize("group", PROMISED)
def test_the_promised_options_are_there(group):
    assert set(PROMISED[group].split()) <= set(options(group))


def test_every_experiment_asks_a_question():
    for path in (conf_folder() / "experiment").glob("*.yaml"):
        assert "# Question: " in path.read_text(), path.name


def test_the_experiments_are_what_they_say(compose):
    zephyr = compose("experiment=zephyr_qlora")
    assert (zephyr.dpo.beta, zephyr.dpo.learning_rate, zephyr.lora.rank) == (0.01, 5e-6, 128)
    # The handbook's QLoRA recipe: 4 pairs a device, 4 steps of accumulation, one process.
    assert zephyr.dpo.batch_size == 16
    assert zephyr.model.adapter == "alignment-handbook/zephyr-7b-sft-qlora"
    pilot = compose("experiment=llama3_1_8b_hh")
    assert (pilot.lora.rank, pilot.lora.alpha, pilot.dpo.beta, pilot.dpo.learning_rate) == (8, 16, 0.1, 5e-7)
    assert (pilot.dpo.epochs, pilot.dpo.batch_size, pilot.dataset.max_length) == (3, 4, 512)


@pytest.mark.parametrize("revision", ["main", "v1.0", "A" * 40, "a" * 39, "g" * 40])
def test_remote_code_needs_a_pinned_commit(revision):
    model = Model("org/name", revision, None, True, None, "main", False)
    with pytest.raises(Refused, match="needs a pinned commit"):
        check_model(model)
    check_model(Model("org/name", "0123456789abcdef" * 2 + "01234567", None, True, None, "main", False))
