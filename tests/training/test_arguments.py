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
    "dpo.f_divergence_type=js_divergence": ("f_divergence_type", "js_divergence"),
    "dpo.ld_alpha=0.5": ("ld_alpha", 0.5),
    "dpo.use_weighting=true": ("use_weighting", True),
    "seed=4": ("seed", 4),
    "lora.dropout=0.1": ("disable_dropout", False),
    "+dpo.trainer.adam_beta2=0.95": ("adam_beta2", 0.95),
}


@pytest.mark.parametrize("override", DPO)
def test_a_leaf_reaches_trl(compose, tmp_path, override):
    reaches(compose, tmp_path, [], [override], *DPO[override])


OF_A_LOSS = {
    "dpo=sigmoid dpo.f_alpha_divergence_coef=0.7": ("f_alpha_divergence_coef", 0.7),
    "dpo=exo_pair dpo.label_smoothing=0.2": ("label_smoothing", 0.2),
    "dpo=robust dpo.label_smoothing=0.2": ("label_smoothing", 0.2),
    "dpo=aot dpo.label_smoothing=0.2": ("label_smoothing", 0.2),
    "dpo=aot_unpaired dpo.label_smoothing=0.2": ("label_smoothing", 0.2),
    "dpo=aot dpo.ld_alpha=0.2": ("ld_alpha", 0.2),
    "dpo=nca_pair dpo.ld_alpha=0.2": ("ld_alpha", 0.2),
    "dpo=bco_pair dpo.use_weighting=true": ("use_weighting", True),
    "dpo=discopop dpo.discopop_tau=0.2": ("discopop_tau", 0.2),
    "dpo=mpo dpo.loss_weights=[1.0,2.0,3.0]": ("loss_weights", [1.0, 2.0, 3.0]),
    "dpo=mpo dpo.loss=[sigmoid,hinge,sft]": ("loss_type", ["sigmoid", "hinge", "sft"]),
    "dpo=mpo dpo.ld_alpha=0.2": ("ld_alpha", 0.2),
}


@pytest.mark.parametrize("override", OF_A_LOSS)
def test_a_leaf_of_a_loss_reaches_trl(compose, tmp_path, override):
    option, leaf = override.split()
    if "f_alpha" in leaf:
        option, leaf = "dpo.f_divergence_type=alpha_divergence", f"dpo.f_divergence_type=alpha_divergence {leaf}"
        base = [option, "dpo.f_alpha_divergence_coef=0.5"]
    else:
        base = [option]
    reaches(compose, tmp_path, base, leaf.split(), *OF_A_LOSS[override])


def reaches(compose, folder, base, leaves, name, value):
    before = getattr(build_arguments(compose(*base), CPU, folder), name)
    after = getattr(build_arguments(compose(*base, *leaves), CPU, folder), name)
    assert before != value
    assert after == value


LORA = {
    "lora.rank=5": ("r", 5),
    "lora.alpha=9": ("lora_alpha", 9),
    "lora.dropout=0.1": ("lora_dropout", 0.1),
    "lora.target_modules=[q_proj,v_proj]": ("target_modules", {"q_proj", "v_proj"}),
    "lora.target_modules='.*layers.0.*_proj'": ("target_modules", ".*layers.0.*_proj"),
    "lora.exclude_modules=[up_proj]": ("exclude_modules", {"up_proj"}),
    "lora.rslora=true": ("use_rslora", True),
    "lora.dora=true": ("use_dora", True),
}


@pytest.mark.parametrize("override", LORA)
def test_a_leaf_reaches_peft(compose, override):
    name, value = LORA[override]
    before, after = (compose(*words).lora for words in ((), (override,)))
    assert getattr(lora_config(before), name) != value
    assert getattr(lora_config(after, after.exclude_modules), name) == value


def test_quantization_reaches_bitsandbytes(compose):
    usual = quantization_config(compose().lora.quantization, CPU)
    assert (usual.bnb_4bit_quant_type, usual.bnb_4bit_use_double_quant) == ("nf4", True)
    other = compose("lora.quantization.type=fp4", "lora.quantization.double=false").lora.quantization
    changed = quantization_config(other, CPU)
    assert (changed.bnb_4bit_quant_type, changed.bnb_4bit_use_double_quant) == ("fp4", False)
    eight = compose("lora=int8").lora.quantization
    assert quantization_config(eight, CPU).load_in_8bit
    assert quantization_config(compose("lora=lora").lora.quantization, CPU) is None
    assert lora_config(compose("lora=full").lora) is None


def test_every_leaf_of_both_groups_is_listed_here():
    import dataclasses

    from dpo.config.schema import NODES

    words = [word.lstrip("+").split("=")[0] for override in [*DPO, *OF_A_LOSS, *LORA] for word in override.split()]
    listed = {word.split(".")[1] for word in words if "." in word}
    # Shown alive elsewhere: by the runs (checkpoints kept, dev pairs looked at) and by the test above; those of losses
    # that are not in TRL's DPO by tests/losses/test_beyond_dpo.py, which gives each to TRL's own trainer as well.
    elsewhere = {"keep_checkpoints", "eval_limit", "quantization"}
    # And what draws answers, by tests/training/rlhf.
    elsewhere |= {"reward", "samples", "max_new_tokens", "cut_penalty"}
    elsewhere |= {"gamma_ratio", "cpo_alpha", "desirable_weight", "undesirable_weight"}
    leaves = {f.name for group in ("dpo", "lora") for node in NODES[group].values() for f in dataclasses.fields(node)}
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
