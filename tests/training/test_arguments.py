"""Every leaf of the dpo and lora groups is alive: changing it changes the named argument of the library call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpo.modeling.device import Compute
from dpo.modeling.policy import lora_config, quantization_config
from dpo.training.arguments import build_arguments

CPU = Compute("cpu", torch.float32)

DPO = {
    "dpo.beta=0.3": ("beta", 0.3),
    "dpo.learning_rate=2e-6": ("learning_rate", 2e-6),
    "dpo.optimizer=paged_adamw_8bit": ("optim", "paged_adamw_8bit"),
    "dpo.weight_decay=0.02": ("weight_decay", 0.02),
    "dpo.max_grad_norm=0.5": ("max_grad_norm", 0.5),
    "dpo.scheduler=cosine": ("lr_scheduler_type", "cosine"),
    "dpo.warmup_ratio=0.2": ("warmup_steps", 0.2),
    "dpo.epochs=2.5": ("num_train_epochs", 2.5),
    "dpo.max_steps=7": ("max_steps", 7),
    "dpo.batch_size=3": ("per_device_train_batch_size", 3),
    "dpo.log_every=5": ("logging_steps", 5),
    "dpo.eval_every=9": ("eval_steps", 9),
    "dpo.save_every=11": ("save_steps", 11),
    "dpo=ipo": ("loss_type", ["ipo"]),
    "seed=4": ("seed", 4),
    "lora.dropout=0.1": ("disable_dropout", False),
    "+dpo.trainer.adam_beta2=0.95": ("adam_beta2", 0.95),
}


@pytest.mark.parametrize("override", DPO)
def test_a_leaf_reaches_trl(compose, tmp_path, override):
    name, value = DPO[override]
    before = getattr(build_arguments(compose(), CPU, tmp_path), name)
    after = getattr(build_arguments(compose(override), CPU, tmp_path), name)
    assert before != value
    assert after == value


LORA = {
    "lora.rank=5": ("r", 5),
    "lora.alpha=9": ("lora_alpha", 9),
    "lora.dropout=0.1": ("lora_dropout", 0.1),
    "lora.target_modules=[q_proj,v_proj]": ("target_modules", {"q_proj", "v_proj"}),
    "lora.rslora=true": ("use_rslora", True),
    "lora.dora=true": ("use_dora", True),
}


@pytest.mark.parametrize("override", LORA)
def test_a_leaf_reaches_peft(compose, override):
    name, value = LORA[override]
    assert getattr(lora_config(compose().lora), name) != value
    assert getattr(lora_config(compose(override).lora), name) == value


def test_quantization_reaches_bitsandbytes(compose):
    usual = quantization_config(compose().lora.quantization, CPU)
    assert (usual.bnb_4bit_quant_type, usual.bnb_4bit_use_double_quant) == ("nf4", True)
    other = compose("lora.quantization.type=fp4", "lora.quantization.double=false").lora.quantization
    changed = quantization_config(other, CPU)
    assert (changed.bnb_4bit_quant_type, changed.bnb_4bit_use_double_quant) == ("fp4", False)
    eight = compose("lora.quantization.bits=8", "lora.quantization.double=false").lora.quantization
    assert quantization_config(eight, CPU).load_in_8bit
    assert quantization_config(compose("lora=lora").lora.quantization, CPU) is None
    assert lora_config(compose("lora=full").lora) is None


def test_every_leaf_of_both_groups_is_listed_here(compose):
    import dataclasses

    config = compose()
    listed = {o.lstrip("+").split("=")[0].split(".")[1] for o in [*DPO, *LORA] if "." in o.split("=")[0]}
    # Shown alive elsewhere: by the runs (checkpoints kept, dev pairs looked at) and by the test above.
    elsewhere = {"loss", "keep_checkpoints", "eval_limit", "quantization"}
    leaves = {f.name for group in (config.dpo, config.lora) for f in dataclasses.fields(group)}
    assert leaves <= listed | elsewhere


def test_the_two_cadences_of_looking_and_keeping_are_alive(tmp_path):
    import tiny

    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl")
    more = ["dpo.keep_checkpoints=1", "dpo.eval_limit=1", "lora=lora", "name=kept"]
    code, output = tiny.run("train", tiny.arguments(model, pairs, *more), Path(tmp_path))
    assert code == 0, output
    folder, _ = tiny.record(tmp_path, "kept")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-8"]
    _, lines = tiny.outcome(tmp_path, "kept")
    assert {line["rewards/accuracies"] for line in lines if line["kind"] == "eval"} <= {0.0, 1.0}
