"""SimPO, CPO, ORPO and KTO: a step, and twenty, are those of TRL's own trainers for them, in both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packed_models import gradients, random_pairs, tiny_model
from peft import get_peft_model
from tiny_trainers import lora, make_trainer, move, same, tokenizer
from transformers import set_seed
from trl import KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.engine.choice import Engine
from dpo.engine.kto_divergence import Divergence
from dpo.engine.micro_batch import own_loss, packed_figures, padded_figures
from dpo.modeling.device import Compute
from dpo.training import trainer as trainers
from dpo.training.arguments import build_arguments, objective
from dpo.training.order import EpochOrder, epoch_order

CPU = Compute("cpu", torch.float32)
PAIRS = random_pairs(12, seed=3, longest=16)
SINGLES = [replace(pair, **{("chosen_ids", "rejected_ids")[i % 3 == 1]: []}) for i, pair in enumerate(PAIRS)]
STEPS, SIZE, LONGEST = 20, 4, 40
OPTIONS = [
    "dpo.beta=0.3", f"dpo.batch_size={SIZE}", f"dpo.max_steps={STEPS}", "dpo.learning_rate=5e-3",
    "dpo.scheduler=linear", "dpo.warmup_ratio=0", f"dataset.max_length={LONGEST}",
]  # fmt: skip
LOSSES = {
    "simpo": ["dpo=simpo", *OPTIONS, "dpo.beta=2.0", "dpo.gamma_ratio=0.6"],
    "cpo": ["dpo=cpo", *OPTIONS, "dpo.cpo_alpha=0.7"],
    "orpo": ["dpo=orpo", *OPTIONS],
    "kto": ["dpo=kto", *OPTIONS, "dpo.desirable_weight=1.2", "dpo.undesirable_weight=0.7"],
}
CASES = [*((name, PAIRS) for name in LOSSES), pytest.param("kto", SINGLES, id="kto of single answers")]


class _Given:
    """TRL's trainer of pairs on our token ids, in our order."""

    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, list[int]]:
        pair = PAIRS[feature["row"]]
        found = {"prompt_input_ids": pair.prompt_ids, "prompt_attention_mask": [1] * len(pair.prompt_ids)}
        for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            whole = pair.prompt_ids + ids
            found |= {f"{side}_input_ids": whole, f"{side}_attention_mask": [1] * len(whole)}
            found[f"{side}_labels"] = [-100] * len(pair.prompt_ids) + ids
        return found

    def _get_train_sampler(self, *_: Any) -> Any:
        return EpochOrder(len(self.train_dataset), self.args.seed)  # type: ignore[attr-defined]


class Cpo(_Given, CPOTrainer):
    pass


class Orpo(_Given, ORPOTrainer):
    pass


class Kto(KTOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def adapted(args: Any) -> Any:
    model = tiny_model("llama", torch.float32)
    set_seed(args.seed)
    return get_peft_model(model, lora())


def examples(step: Sequence[TokenPair]) -> list[dict[str, Any]]:
    """Rows of TRL's KTOTrainer: all chosen, then all rejected, each prompt with the completion before it as well.

    Single answers are in the order of their step.
    """
    rows = [
        {"prompt_ids": p.prompt_ids, "completion_ids": p.chosen_ids or p.rejected_ids, "label": bool(p.chosen_ids)}
        for p in step
        if not (p.chosen_ids and p.rejected_ids)
    ] or [
        {"prompt_ids": pair.prompt_ids, "completion_ids": ids, "label": label}
        for label in (True, False)
        for pair in step
        for ids in [pair.chosen_ids if label else pair.rejected_ids]
    ]
    return [{**row, "KL_completion_ids": rows[i - 1]["completion_ids"]} for i, row in enumerate(rows)]


def theirs(config: Config, folder: Path, pairs: Sequence[TokenPair] = PAIRS) -> Any:
    dpo: Any = config.dpo
    common: dict[str, Any] = {
        "output_dir": str(folder), "beta": dpo.beta, "learning_rate": dpo.learning_rate, "max_steps": STEPS,
        "logging_steps": 1, "max_grad_norm": 1.0, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "bf16": False, "remove_unused_columns": False, "disable_tqdm": True, "logging_nan_inf_filter": False,
        "seed": config.seed, "max_length": LONGEST if dpo.loss == ["kto"] else 256,
    }  # fmt: skip
    if dpo.loss == ["kto"]:
        weights = {name: getattr(dpo, name) for name in ("desirable_weight", "undesirable_weight")}
        each = len(pairs) // SIZE
        orders = [epoch_order(len(pairs), config.seed, epoch) for epoch in range(STEPS // each + 1)]
        steps = [order[i : i + SIZE] for order in orders for i in range(0, len(pairs), SIZE)]
        rows = [row for step in steps[:STEPS] for row in examples([pairs[i] for i in step])]
        sides = len(rows) // STEPS
        args: Any = KTOConfig(
            **common, per_device_train_batch_size=sides, train_sampling_strategy="sequential", **weights
        )
        return Kto(model=adapted(args), args=args, processing_class=tokenizer(), train_dataset=Dataset.from_list(rows))
    rows = [{"row": i, "prompt": "w3", "chosen": "w4", "rejected": "w5"} for i in range(len(pairs))]
    common["per_device_train_batch_size"] = SIZE
    if dpo.loss == ["orpo"]:
        kind, args = Orpo, ORPOConfig(**common)
    elif dpo.loss == ["cpo"]:
        kind, args = Cpo, CPOConfig(**common, cpo_alpha=dpo.cpo_alpha)
    else:
        gamma = dpo.beta * dpo.gamma_ratio
        kind, args = Cpo, CPOConfig(**common, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=gamma)
    return kind(model=adapted(args), args=args, processing_class=tokenizer(), train_dataset=Dataset.from_list(rows))


def ours(config: Config, folder: Path, engine: str, size: int, pairs: Sequence[TokenPair] = PAIRS) -> trainers.Trainer:
    forward = packed_figures if engine == "packed" else padded_figures
    cut = Engine(
        own_loss(objective(config.dpo), forward),
        lambda pairs, *_: [pairs[i : i + size] for i in range(0, len(pairs), size)],
        1,
        name=engine,
        divergence=Divergence(forward, LONGEST) if config.dpo.loss == ["kto"] else None,
    )
    return make_trainer(
        tiny_model("llama", torch.float32), build_arguments(config, CPU, folder), pairs, folder, cut, around=LONGEST
    )


def their_step(config: Config, folder: Path, pairs: Sequence[TokenPair]) -> tuple[Any, dict[str, float]]:
    trainer = theirs(config, folder)
    move(trainer.model)
    trainer.model.train()
    if config.dpo.loss == ["kto"]:
        loss = trainer._compute_loss(trainer.model, trainer.data_collator(examples(pairs)), False)
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    else:
        batch = trainer.data_collator([trainer.tokenize_row({"row": PAIRS.index(pair)}) for pair in pairs])
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "train")
    loss.backward()
    return (float(loss.detach()), gradients(trainer.model)), metrics


# TRL's trainers without a reference take these over all positions, padding and prompts among them.
OTHERWISE = {"logits/chosen", "logits/rejected"}


@pytest.mark.parametrize(("name", "pairs"), CASES)
def test_a_step_is_trls_in_one_part_and_in_several_in_both_engines(
    compose: Callable[..., Config], tmp_path: Path, name: str, pairs: list[TokenPair]
) -> None:
    config, step = compose(*LOSSES[name]), pairs[:7]
    truth, metrics = their_step(config, tmp_path / "trl", step)
    for engine, size in (("packed", 7), ("packed", 3), ("plain", 7), ("plain", 2)):
        trainer = ours(config, tmp_path / f"{engine}-{size}", engine, size, pairs)
        move(trainer.model)
        trainer.model.train()
        found = float(trainer._forward_backward(trainer.model, list(step), 1)), gradients(trainer.model)
        same(found, truth)
        got = trainer._drain()
        if name == "simpo":
            assert metrics.pop("nll_loss", 0.0) == 0.0  # CPO's likelihood, with its weight at 0
        for key in metrics.keys() - (OTHERWISE if name != "kto" else set()):
            if size == 7 or key not in ("entropy", "logits/chosen", "logits/rejected"):
                assert got[key] == pytest.approx(metrics[key], rel=2e-4, abs=2e-4), key
        assert trainer.evaluate_now().keys() == got.keys()


@pytest.mark.parametrize(("name", "pairs"), CASES)
def test_twenty_steps_are_trls(
    compose: Callable[..., Config], tmp_path: Path, name: str, pairs: list[TokenPair]
) -> None:
    config = compose(*LOSSES[name])
    other = theirs(config, tmp_path / "trl", pairs)
    other.train()
    expected = [entry for entry in other.state.log_history if "loss" in entry]
    trainer = ours(config, tmp_path / "ours", "packed", 3, pairs)
    got: list[dict[str, float]] = []
    trainer.on_log = lambda kind, step, values: got.append(values) if kind == "train" else None
    trainer.train()
    assert len(got) == len(expected) == STEPS
    assert abs(expected[0]["loss"] - expected[-1]["loss"]) > 0.01
    names = {"loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected"}
    names |= {"nll_loss", "kl", "log_odds_chosen", "log_odds_ratio"} & expected[0].keys() & got[0].keys()
    for step, (mine, trl) in enumerate(zip(got, expected, strict=True)):
        for key in names & trl.keys():
            assert mine[key] == pytest.approx(trl[key], rel=2e-3, abs=5e-4), (step, key)
    if name == "kto":
        assert max(step["kl"] for step in got) > 0.01
    own = dict(trainer.model.named_parameters())
    for key, parameter in other.model.named_parameters():
        if parameter.requires_grad and ".ref." not in key:
            assert (own[key] - parameter).abs().max() <= 2e-2 * parameter.abs().max(), key
