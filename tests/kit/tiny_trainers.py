"""Trainers on tiny models: ours with an engine, and TRL's own on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packed_models import VOCABULARY
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, set_seed
from trl import DPOTrainer

from dpo.data.pair import TokenPair
from dpo.engine.choice import Engine
from dpo.engine.kto_divergence import mismatch
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import install
from dpo.training import trainer as trainers
from dpo.training.interrupts import Interrupts
from dpo.training.order import EpochOrder


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), pad_token="<pad>", eos_token="</s>"
    )


def lora() -> Any:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def make_trainer(
    model: Any,
    args: Any,
    pairs: Sequence[TokenPair],
    folder: Path,
    engine: Engine,
    soft_labels: bool = False,
    around: int | None = None,
) -> trainers.Trainer:
    """Ours on a model with fresh adapters, the same that TRL would draw; its reference is the start. `around`: also of
    each prompt with any other's completions, cut to so many tokens."""
    set_seed(args.seed)
    model = get_peft_model(model, lora())
    if engine.name == "packed":
        assert install(model) is None
    trainer = trainers.Trainer(
        model=model,
        args=args,
        engine=engine,
        tokenizer=tokenizer(),
        train_pairs=pairs,
        dev_pairs=list(pairs),
        interrupts=Interrupts(),
        checkpoint_root=folder / "checkpoints",
        fingerprints={},
        soft_labels=soft_labels,
    )
    with trainer.model.disable_adapter(), trainer.accelerator.autocast():
        wanted = [*pairs, *(mismatch(p, q, around) for p in pairs for q in pairs if around)]
        scores = sequence_log_probs(trainer.model, wanted, 1000, ld_alpha=trainer.ld_alpha)
    trainer.reference = {pair.id: score for pair, score in zip(wanted, scores, strict=True)}
    return trainer


def move(model: torch.nn.Module) -> None:
    """Make its adapter a trained one: B is not zero."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and ".ref." not in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)


def rows_of(pairs: Sequence[TokenPair]) -> list[dict[str, list[int]]]:
    """What TRL's trainer takes for tokenized pairs."""
    return [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]


class SameOrder(DPOTrainer):
    """TRL as it is, except for the order of pairs and that it takes token ids as they come."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return EpochOrder(len(self.train_dataset), self.args.seed)


def trls(model: Any, args: Any, pairs: Sequence[TokenPair]) -> SameOrder:
    """TRL's own trainer, which computes its reference itself."""
    rows = Dataset.from_list(rows_of(pairs))
    return SameOrder(
        model=model,
        args=args,
        peft_config=lora(),
        processing_class=tokenizer(),
        train_dataset=rows,
        eval_dataset=rows,
    )


def same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    """Two steps, (loss, gradients), are one but for fp32's rounding."""
    assert one[0] == pytest.approx(other[0], rel=2e-5)
    assert one[1].keys() == other[1].keys()
    largest = max(float(g.abs().max()) for g in other[1].values())
    assert largest > 0
    for name, gradient in one[1].items():
        assert float((gradient - other[1][name]).abs().max()) <= 2e-4 * largest, name
