"""Twenty steps of our trainer with the packed engine against TRL's own DPOTrainer: same pairs, same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packed_models import VOCABULARY, random_pairs, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from dpo.engine.budget import split
from dpo.engine.choice import Engine
from dpo.engine.install import install
from dpo.engine.part import packed_loss
from dpo.engine.score import sequence_log_probs
from dpo.training import trainer as trainers
from dpo.training.arguments import objective
from dpo.training.interrupts import Interrupts
from dpo.training.order import EpochOrder

STEPS = 20


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), pad_token="<pad>", eos_token="</s>"
    )


def arguments(folder: Path, loss: str, **changes: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        loss_type=[loss],
        beta=0.3,
        learning_rate=5e-3,
        max_steps=STEPS,
        logging_steps=1,
        per_device_train_batch_size=4,
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        **changes,
    )


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


class SameOrder(DPOTrainer):
    """TRL as it is, except for the order of pairs and that it takes token ids as they come."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return EpochOrder(len(self.train_dataset), self.args.seed)


@pytest.mark.parametrize(("family", "loss"), [("llama", "sigmoid"), ("gemma3_text", "ipo"), ("qwen3", "bco_pair")])
def test_twenty_steps_equal_trl(tmp_path: Path, family: str, loss: str) -> None:
    pairs = random_pairs(24, longest=16)
    rows = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    torch.manual_seed(5)
    theirs = SameOrder(
        model=tiny_model(family, torch.float32),
        args=arguments(tmp_path / "trl", loss),
        peft_config=lora(),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list(rows),
    )
    theirs.train()
    expected = [entry for entry in theirs.state.log_history if "loss" in entry]

    torch.manual_seed(5)
    ours = trainers.Trainer(
        model=tiny_model(family, torch.float32),
        args=arguments(tmp_path / "ours", loss, activation_checkpointing=False),
        peft_config=lora(),
        tokenizer=tokenizer(),
        train_pairs=pairs,
        dev_pairs=pairs[:2],
        interrupts=Interrupts(),
        checkpoint_root=tmp_path / "checkpoints",
        fingerprints={},
    )
    assert install(ours.model) is None
    # A budget that cuts most steps in two or three.
    ours.engine = Engine(packed_loss(objective(ours.args)), lambda p, b, n: split(p, b), 48)
    assert any(len(split(pairs[i : i + 4], 48)) > 1 for i in range(0, 24, 4))
    with ours.model.disable_adapter():
        scores = sequence_log_probs(ours.model, pairs, 100)
    ours.reference = {pair.id: score for pair, score in zip(pairs, scores, strict=True)}
    got: list[dict[str, float]] = []
    ours.on_log = lambda kind, step, values: got.append(values) if kind == "train" else None
    ours.train()

    assert len(expected) == STEPS
    assert len(got) == STEPS
    assert abs(expected[0]["loss"] - expected[-1]["loss"]) > 0.05  # it learns, so agreement means something
    for step, (mine, trl) in enumerate(zip(got, expected, strict=True)):
        for name in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
            if step == 0 and name == "rewards/accuracies":
                continue  # all log-ratios are 0 before the first step: rounding decides who wins
            assert mine[name] == pytest.approx(trl[name], rel=2e-3, abs=2e-4), (step, name)
    # Metrics that TRL weights by tokens agree where a step is one micro-batch; here they are close.
    assert got[-1]["entropy"] == pytest.approx(expected[-1]["entropy"], rel=0.05)
    mine = dict(ours.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        if parameter.requires_grad:
            difference = (mine[name] - parameter).abs().max().item()
            assert difference <= 2e-2 * parameter.abs().max().item(), name
