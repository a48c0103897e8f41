"""Twenty steps of our trainer with the packed engine against TRL's own DPOTrainer: same pairs, same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import random_pairs, tiny_model
from tiny_trainers import make_trainer, trls
from trl import DPOConfig

from dpo.engine.budget import split
from dpo.engine.choice import Engine
from dpo.engine.micro_batch import packed_loss
from dpo.losses.objective import Objective

STEPS, BETA = 20, 0.3
PAIRS = random_pairs(24, longest=16)
# TRL takes these over the tokens of a batch, so they are its own only where a step is one part.
BY_TOKEN = {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}
Steps = list[dict[str, float]]


def arguments(folder: Path, loss: str) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        loss_type=[loss],
        beta=BETA,
        learning_rate=5e-3,
        max_steps=STEPS,
        logging_steps=1,
        per_device_train_batch_size=4,
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
    )


def of_trl(folder: Path, family: str, loss: str, dtype: torch.dtype) -> tuple[Steps, torch.nn.Module]:
    trainer = trls(tiny_model(family, dtype), arguments(folder, loss), PAIRS)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], trainer.model


def ours(folder: Path, family: str, loss: str, dtype: torch.dtype, budget: int) -> tuple[Steps, torch.nn.Module]:
    engine = Engine(packed_loss(Objective((loss,), BETA)), lambda p, b, n: split(p, b), budget)
    trainer = make_trainer(tiny_model(family, dtype), arguments(folder, loss), PAIRS, folder, engine)
    got: Steps = []
    trainer.on_log = lambda kind, step, values: got.append(values) if kind == "train" else None
    trainer.train()
    return got, trainer.model


def names(got: Steps, expected: Steps) -> set[str]:
    """Everything both log, which is everything TRL logs of a batch."""
    assert len(got) == len(expected) == STEPS
    assert abs(expected[0]["loss"] - expected[-1]["loss"]) > 0.05  # it learns, so agreement means something
    # Counts of its own, and not figures of a batch.
    counts = {"num_tokens", "step", "epoch"}
    found = got[0].keys() & expected[0].keys() - counts
    assert found == expected[0].keys() - counts
    return found


# A budget that cuts most steps in two or three, and one that cuts none.
@pytest.mark.parametrize(
    ("family", "loss", "budget"), [("llama", "sigmoid", 10**6), ("gemma3_text", "ipo", 48), ("qwen3", "bco_pair", 48)]
)
def test_twenty_steps_equal_trl(tmp_path: Path, family: str, loss: str, budget: int) -> None:
    expected, theirs = of_trl(tmp_path / "trl", family, loss, torch.float32)
    got, model = ours(tmp_path / "ours", family, loss, torch.float32, budget)
    whole = all(len(split(PAIRS[i : i + 4], budget)) == 1 for i in range(0, 24, 4))
    assert whole == (budget > 48)
    for name in names(got, expected):
        for step, (mine, trl) in enumerate(zip(got, expected, strict=True)):
            if step == 0 and name == "rewards/accuracies":
                continue  # all log-ratios are 0 before the first step: rounding decides who wins
            near: Any = pytest.approx(trl[name], rel=2e-3, abs=2e-4)
            if name in BY_TOKEN and not whole:
                near = pytest.approx(trl[name], rel=0.2, abs=0.1)
            assert mine[name] == near, (step, name)
    mine = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            difference = (mine[name] - parameter).abs().max().item()
            assert difference <= 2e-2 * parameter.abs().max().item(), name


@pytest.mark.parametrize(
    "loss",
    ["sigmoid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ipo", "bco_pair", "apo_zero", "sft"))],
)
def test_twenty_steps_in_bf16_are_as_far_from_the_truth_as_trls(tmp_path: Path, loss: str) -> None:
    """Of every metric; the truth is TRL in fp32, and its own distance in bf16 says what rounding does."""
    truth, _ = of_trl(tmp_path / "truth", "llama", loss, torch.float32)
    theirs, _ = of_trl(tmp_path / "trl", "llama", loss, torch.bfloat16)
    got, _ = ours(tmp_path / "ours", "llama", loss, torch.bfloat16, 10**6)

    def far(steps: Steps, name: str) -> float:
        pairs = list(zip(steps, truth, strict=True))[1:]
        return sum(abs(one[name] - other[name]) for one, other in pairs) / len(pairs)

    for name in names(got, truth):
        size = max(abs(step[name]) for step in truth)
        # Shares move by a whole pair (token): one on every fifth step is rounding's.
        floor = 0.05 if name in ("rewards/accuracies", "mean_token_accuracy") else 2**-8 * size
        print(f"{name:24s} ours {far(got, name):.3g}  trl {far(theirs, name):.3g}  of {size:.3g}")
        assert far(got, name) <= 1.5 * far(theirs, name) + floor, name
